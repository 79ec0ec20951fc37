#!/usr/bin/env bash
# Inside a guest of the lab, from the project's folder: installs the units as README.md says, starts a
# systemd of its own in a namespace, and uses blockd under it. Says OK at the end.
set -euo pipefail

fail() {
    echo "FAILED: $1"
    systemd_in systemctl status blockd.service --no-pager --lines=0 || true
    cat /var/blockd.log
    exit 1
}
systemd_in() { nsenter --target "$systemd" --pid --mount --cgroup "$@"; }
wait_for() {
    local tries=150
    until "$@" >/dev/null 2>&1; do
        tries=$((tries - 1))
        [ "$tries" -gt 0 ] || fail "waited in vain for: $*"
        sleep 0.2
    done
}

units=/etc/systemd/system
mkdir -p "$units/blockd.service.d" /etc/blockd
install -m 0644 systemd/blockd.service systemd/blockd.socket "$units"
install -m 0644 systemd/blockd-sysusers.conf /usr/lib/sysusers.d/blockd.conf
install -m 0644 systemd/blockd-tmpfiles.conf /usr/lib/tmpfiles.d/blockd.conf
sed 's/^vg = .*/vg = "lab"/' etc/blockd.toml >/etc/blockd/blockd.toml
# The unit hides /home and /tmp, where this project or its Python may lie.
printf '[Service]\nStandardError=append:/var/blockd.log\nBindReadOnlyPaths=%s %s\n' \
    "$PWD" "$(python -c 'import sys; print(sys.base_prefix)')" >"$units/blockd.service.d/test.conf"
# The mounts of the lab stay; of the host's own units none is wanted but these.
printf '[Unit]\nRequires=basic.target\nAfter=basic.target\n' >"$units/lab.target"
for other in systemd-udev-trigger systemd-udevd e2scrub_reap lvm2-monitor blk-availability; do
    ln -sf /dev/null "$units/$other.service"
done
rm -rf /run/blockd
ln -sf "$(command -v blockd)" /usr/bin/blockd
systemd-sysusers
blockd make-pool /dev/ubda

mount -t cgroup2 none /sys/fs/cgroup
systemd=0
env -i container=lab PATH="$PATH" unshare --pid --fork --mount --mount-proc --cgroup --kill-child \
    /lib/systemd/systemd --system --unit=lab.target --log-target=console --show-status=no \
    >/dev/null 2>&1 &
found() { systemd=$(pgrep -f '^/lib/systemd/systemd --system --unit=lab.target'); }
for _ in $(seq 150); do found && break || sleep 0.2; done
wait_for systemd_in systemctl is-active lab.target

systemd_in systemctl start blockd.socket || fail "the socket does not start"
systemd_in systemctl start blockd.service || fail "the service does not start"
main=$(systemd_in systemctl show --property=MainPID --value blockd.service)
systemd_in grep -q '^NoNewPrivs:.*1$' "/proc/$main/status" || fail "it is not confined"

export BLOCKD_SOCKET=/run/blockd/blockd.sock
access=$(stat -c '%a %U %G' "$BLOCKD_SOCKET")
[ "$access" = "660 root blockd" ] || fail "access to the socket is: $access"
blockctl volume create data --size 100M
blockctl snapshot create data first
blockctl volume revert data first
blockctl snapshot clone first copy
device=$(blockctl volume path data)
mkfs.ext4 -q "$device"
mount "$device" /mnt
blockctl snapshot create data second
umount /mnt
setpriv --reuid=nobody --regid=blockd --clear-groups test -e "$device" || fail "others cannot reach /dev/blockd"

before=$(blockctl --quiet volume list)
systemd_in systemctl restart blockd.service || fail "it does not restart"
[ "$(blockctl --quiet volume list)" = "$before" ] || fail "restarted, it lists other volumes"
systemd_in systemctl kill --signal=KILL blockd.service
wait_for systemd_in systemctl is-active blockd.service
[ "$(blockctl --quiet volume list)" = "$before" ] || fail "killed, it lists other volumes"
systemd_in systemctl stop blockd.service || fail "it does not stop"
[ -S "$BLOCKD_SOCKET" ] || fail "the socket is gone with the service"
blockctl health || fail "a request does not start the service"
echo OK
