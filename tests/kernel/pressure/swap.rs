//! A swap file for the time of a test.
//!
//! UNSAFETY: system calls on paths; mincore into a buffer made for it.
#![expect(unsafe_code, reason = "swapon, swapoff and mincore")]

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::libc;
use std::ffi::CString;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

const LEN: usize = 48 << 20;
const PAGE: usize = 4096;

/// Switched off and removed when dropped.
pub(crate) struct Swap {
    file: PathBuf,
    _one: Flock<File>,
}

impl Swap {
    /// One test at a time, of all processes, has it.
    pub(crate) fn on() -> Result<Self, String> {
        let swaps = File::open("/proc/swaps").map_err(|e| format!("/proc/swaps: {e}"))?;
        let one = Flock::lock(swaps, FlockArg::LockExclusive).map_err(|(_, e)| format!("/proc/swaps: {e}"))?;
        let mut why = String::from("no directory to have a swap file in");
        // Not every file system takes one: tmpfs and overlayfs don't.
        let beside = std::env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_owned));
        for dir in [Some(std::env::temp_dir()), beside, Some("/var/tmp".into())].into_iter().flatten() {
            let file = dir.join(format!("revocable-swap-{}", std::process::id()));
            let tried = make(&file).map_err(|e| e.to_string()).and_then(|()| switch(&file).map_err(|e| e.to_string()));
            match tried {
                Ok(()) => return Ok(Self { file, _one: one }),
                Err(e) => why = format!("no swap file in {}: {e}", dir.display()),
            }
            let _ = fs::remove_file(&file);
        }
        Err(why)
    }
}

/// What mkswap(8) writes (`union swap_header`), and no holes.
fn make(path: &Path) -> std::io::Result<()> {
    let mut header = vec![0; PAGE];
    let last_page = u32::try_from(LEN / PAGE - 1).expect("small");
    header[1024..1028].copy_from_slice(&1_u32.to_le_bytes());
    header[1028..1032].copy_from_slice(&last_page.to_le_bytes());
    header[PAGE - 10..].copy_from_slice(b"SWAPSPACE2");
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(path)?;
    file.set_permissions(fs::Permissions::from_mode(0o600))?;
    file.write_all(&header)?;
    file.write_all(&vec![0; LEN - PAGE])?;
    file.sync_all()
}

fn switch(path: &Path) -> nix::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes()).expect("no NUL in it");
    // SAFETY: a C string; the kernel keeps to the file, which is the test's.
    Errno::result(unsafe { libc::swapon(path.as_ptr(), 0) }).map(drop)
}

impl Drop for Swap {
    fn drop(&mut self) {
        let path = CString::new(self.file.as_os_str().as_bytes()).expect("no NUL in it");
        // SAFETY: a C string; what is in the file is brought back first.
        if unsafe { libc::swapoff(path.as_ptr()) } != 0 {
            eprintln!("swapoff {}: {}", self.file.display(), Errno::last());
        }
        let _ = fs::remove_file(&self.file);
    }
}

/// How many pages of a range are not in memory, see mincore(2).
pub(crate) fn pages_out(addr: usize, len: usize) -> usize {
    let mut pages = vec![0_u8; len / PAGE];
    let at = std::ptr::with_exposed_provenance_mut(addr);
    // SAFETY: one byte for each page; the range is only looked at.
    Errno::result(unsafe { libc::mincore(at, len, pages.as_mut_ptr()) }).expect("it is mapped");
    pages.into_iter().filter(|page| page & 1 == 0).count()
}
