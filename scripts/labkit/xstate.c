/* Lets user-mode-linux 6.1 run on processors with more register state than it has room for.
 *
 * It saves and restores a guest process's registers with PTRACE_GETREGSET and SETREGSET and 2,696
 * bytes, enough for AVX-512. Where the host's state is larger (AMX: 11,008 bytes) the kernel gives
 * what fits, and refuses to take back less than all of it: the guest dies at its first process.
 * Loaded into it (LD_PRELOAD), this fills up what it gives back: the parts it knows are its own, and
 * those it does not know are marked as in their initial state, which is what a guest without AMX has.
 *
 * Source: Linux, arch/x86/kernel/fpu/regset.c (xstateregs_set), arch/x86/um/os-Linux/registers.c;
 * Intel SDM volume 1, 13.4 (the XSAVE header is at byte 512, bits 0 to 7 and 9 lie below 2,696).
 */
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define NT_X86_XSTATE 0x202
#define KNOWN_STATES 0x2ffull

static long set_whole(long pid, const struct iovec *part)
{
	static char state[65536]; /* the kernel that calls has one thread, and a small stack */
	struct iovec whole = {state, sizeof state};
	uint64_t present;

	if (syscall(SYS_ptrace, PTRACE_GETREGSET, pid, NT_X86_XSTATE, &whole) < 0)
		return -1;
	if (whole.iov_len <= part->iov_len)
		return syscall(SYS_ptrace, PTRACE_SETREGSET, pid, NT_X86_XSTATE, part);
	memcpy(state, part->iov_base, part->iov_len);
	memset(state + part->iov_len, 0, whole.iov_len - part->iov_len);
	memcpy(&present, state + 512, sizeof present);
	present &= KNOWN_STATES;
	memcpy(state + 512, &present, sizeof present);
	return syscall(SYS_ptrace, PTRACE_SETREGSET, pid, NT_X86_XSTATE, &whole);
}

long ptrace(enum __ptrace_request request, ...)
{
	va_list rest;
	long pid, result, word;
	void *address, *data;

	va_start(rest, request);
	pid = va_arg(rest, long);
	address = va_arg(rest, void *);
	data = va_arg(rest, void *);
	va_end(rest);
	if ((int)request == PTRACE_SETREGSET && (long)address == NT_X86_XSTATE)
		return set_whole(pid, data);
	switch ((int)request) {
	case PTRACE_PEEKTEXT:
	case PTRACE_PEEKDATA:
	case PTRACE_PEEKUSER: /* as in the C library: the word is the result */
		result = syscall(SYS_ptrace, request, pid, address, &word);
		return result < 0 ? result : word;
	default:
		return syscall(SYS_ptrace, request, pid, address, data);
	}
}
