//! Files that are there completely or not at all.

use std::{
    fs::{self, File, OpenOptions},
    io,
    path::{Path, PathBuf},
};

/// Makes the names in a directory durable.
pub(super) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// A file under a temporary name; removed when dropped, unless it was published.
#[derive(Debug)]
pub(super) struct NewFile {
    path: PathBuf,
    file: File,
    published: bool,
}

impl NewFile {
    /// Creates it; an existing file is an error.
    pub(super) fn create(path: PathBuf) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
        Ok(Self { path, file, published: false })
    }

    /// The open file.
    pub(super) fn file(&mut self) -> &mut File {
        &mut self.file
    }

    /// Syncs it, gives it its name in the same directory (replacing what has it), and syncs the directory.
    pub(super) fn publish(mut self, name: &Path) -> io::Result<()> {
        self.file.sync_all()?;
        fs::rename(&self.path, name)?;
        self.published = true;
        sync_dir(name.parent().expect("a file stands in a directory"))
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        // What can't be removed now is removed at the next open.
        if !self.published {
            drop(fs::remove_file(&self.path));
        }
    }
}
