//! A disk of its own whose power can be cut: ext4 on a loop device.

use std::path::{Path, PathBuf};

use crate::tools::run;

/// Larger than the space a node wants to see free; the file is sparse.
const IMAGE_BYTES: u64 = 3 << 30;
/// Nothing but a sync writes the journal within a test's time, as on a busy machine within the first seconds.
const MOUNT_OPTIONS: &str = "commit=300";
/// `EXT4_IOC_SHUTDOWN` with `EXT4_GOING_FLAGS_NOLOGFLUSH`: from now on nothing reaches the device, not even the journal
/// that is in memory.
const CUT: &str = "import fcntl, os, struct, sys
fcntl.ioctl(os.open(sys.argv[1], os.O_RDONLY), 0x8004587d, struct.pack('I', 2))";

/// A mounted disk; unmounted and detached when dropped.
#[derive(Debug)]
pub(crate) struct Disk {
    device: String,
    mount: PathBuf,
}

impl Disk {
    /// Makes and mounts a disk with its image in `scratch`.
    ///
    /// # Errors
    /// What the machine lacks.
    pub(crate) fn new(scratch: &Path) -> Result<Self, String> {
        run("python3", &["-c", "import fcntl"])?;
        let image = scratch.join("disk.img");
        let file = std::fs::File::create(&image).map_err(|e| e.to_string())?;
        file.set_len(IMAGE_BYTES).map_err(|e| e.to_string())?;
        let image = image.to_str().expect("text");
        run("mkfs.ext4", &["-q", "-F", image])?;
        let found = run("losetup", &["--find", "--show", image])?;
        let device = String::from_utf8_lossy(&found.stdout).trim().to_owned();
        let disk = Self { device, mount: scratch.join("disk") };
        std::fs::create_dir(&disk.mount).map_err(|e| e.to_string())?;
        disk.mount()?;
        Ok(disk)
    }

    /// Where it is mounted.
    pub(crate) fn path(&self) -> &Path {
        &self.mount
    }

    fn at(&self) -> &str {
        self.mount.to_str().expect("text")
    }

    fn mount(&self) -> Result<(), String> {
        run("mount", &["-t", "ext4", "-o", MOUNT_OPTIONS, &self.device, self.at()]).map(drop)
    }

    /// Cuts the power: what was not synced is gone, and every further write fails.
    pub(crate) fn cut_power(&self) {
        run("python3", &["-c", CUT, self.at()]).expect("ext4 can be shut down");
    }

    /// Brings the disk back as it would be after the power came back. Nobody may use it any more.
    pub(crate) fn power_on(&self) {
        run("umount", &[self.at()]).expect("nobody uses the disk");
        self.mount().expect("the disk comes back");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: a process that is still ending must not keep it.
        let _ = run("umount", &["-l", self.at()]);
        let _ = run("losetup", &["-d", &self.device]);
    }
}
