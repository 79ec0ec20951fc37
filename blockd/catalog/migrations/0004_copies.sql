-- Commits are counted, so that of two copies of a catalog the newer is known; and a file of ours is
-- known as such ("blkd"), before anything is written to it.
INSERT INTO meta VALUES ('generation', '0');
PRAGMA application_id = 0x626c6b64;
