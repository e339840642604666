-- Schema 1 of the history. `position` is the order in which jobs ended: newest-first reading, cursors and retention all
-- follow it, so that only what a filter looks for rarely-among-many is indexed, partially where it is mostly null.
-- `id` is stored with a sign (ids are unsigned 64-bit numbers). `outline` is what nothing searches by, as msgpack.
CREATE TABLE meta (key TEXT PRIMARY KEY, value NOT NULL) WITHOUT ROWID;
CREATE TABLE finished (
    position INTEGER PRIMARY KEY,
    id INTEGER NOT NULL,
    finished_ns INTEGER NOT NULL,
    outcome INTEGER NOT NULL,
    service TEXT NOT NULL,
    worker TEXT,
    customer_id TEXT,
    workflow_id TEXT,
    labels TEXT,
    outline BLOB NOT NULL,
    result BLOB
);
CREATE UNIQUE INDEX finished_id ON finished (id);
CREATE INDEX finished_service ON finished (service);
CREATE INDEX finished_outcome ON finished (outcome) WHERE outcome <> 0;
CREATE INDEX finished_customer ON finished (customer_id) WHERE customer_id IS NOT NULL;
CREATE INDEX finished_workflow ON finished (workflow_id) WHERE workflow_id IS NOT NULL;
-- The highest job number of each session whose row has left the history.
CREATE TABLE expired (session INTEGER PRIMARY KEY, highest INTEGER NOT NULL);
INSERT INTO meta VALUES ('cursor', 0), ('instance', ''), ('results_dropped', 0), ('last_position', 0), ('session_floor', 0);
