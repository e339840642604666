"""Generated files to where they are kept: Azure Blob Storage or the daemon's own disk, fenced by job and epoch."""
