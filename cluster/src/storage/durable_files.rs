//! Files that are there completely or not at all.

use std::{fs::File, io, path::Path};

use tempfile::NamedTempFile;

/// Makes the names in a directory durable.
pub(super) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Syncs a temporary file, gives it a name in the same directory (replacing what has it), and syncs the directory.
pub(super) fn publish(file: NamedTempFile, name: &Path) -> io::Result<()> {
    file.as_file().sync_all()?;
    file.persist(name)?;
    sync_dir(name.parent().expect("a file stands in a directory"))
}
