-- Schema 1 of the journal. `trimmed_through` is the last seq that was ever trimmed: rows start right after it.
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE rows (
    seq INTEGER PRIMARY KEY,
    at_ns INTEGER NOT NULL,
    kind INTEGER NOT NULL,
    origin INTEGER NOT NULL,
    body BLOB NOT NULL,
    crc INTEGER NOT NULL
);
INSERT INTO meta VALUES ('instance', lower(hex(randomblob(16)))), ('trimmed_through', '0');
