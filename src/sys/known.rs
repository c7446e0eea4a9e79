//! A descriptor that notices if its number has become another file's.
//!
//! Other code in the process may close any descriptor, or put another file in its place (dup2). A mapping of that file
//! would be taken for the crate's own memory. So a file is compared with its earlier identity (device and inode, fstat(2))
//! before it is mapped, and a number that has become another file's is not closed.

use super::{SysError, may_fail};
use nix::errno::Errno;
use nix::sys::stat::fstat;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// A file of the crate's own, or of its user's.
#[derive(Debug)]
pub(crate) struct KnownFile {
    fd: ManuallyDrop<OwnedFd>,
    /// `None` if fstat(2) failed; then it is taken for no file.
    what: Option<What>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct What {
    device: u64,
    inode: u64,
    /// The device number of a device file.
    special: u64,
}

impl KnownFile {
    pub(crate) fn new(fd: OwnedFd) -> Self {
        let what = what(fd.as_fd()).ok();
        Self { fd: ManuallyDrop::new(fd), what }
    }

    /// The descriptor, if it is still the same file.
    ///
    /// # Errors
    /// EBADF: the descriptor was closed, or its number is another file's.
    pub(crate) fn get(&self) -> Result<BorrowedFd<'_>, SysError> {
        may_fail("fstat")?;
        match Some(what(self.fd.as_fd())?) == self.what {
            true => Ok(self.fd.as_fd()),
            false => Err(SysError::new("fstat", Errno::EBADF)),
        }
    }

    /// The descriptor, whatever file it is by now.
    pub(crate) fn unchecked(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for KnownFile {
    #[expect(unsafe_code, reason = "UNSAFETY: drops a field that is used no more, once")]
    fn drop(&mut self) {
        if what(self.fd.as_fd()).ok() == self.what {
            // SAFETY: `self` is being dropped, and nothing else drops the field.
            unsafe { ManuallyDrop::drop(&mut self.fd) };
        }
    }
}

fn what(fd: BorrowedFd<'_>) -> Result<What, SysError> {
    let stat = fstat(fd).map_err(|e| SysError::new("fstat", e))?;
    #[expect(clippy::useless_conversion, reason = "their types differ between architectures and libcs")]
    Ok(What { device: stat.st_dev.into(), inode: stat.st_ino.into(), special: stat.st_rdev.into() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsRawFd;

    #[test]
    #[expect(unsafe_code, reason = "UNSAFETY: puts another file in the place of one that is owned here")]
    fn another_file_under_its_number_is_found_out_and_left_open() {
        let file = KnownFile::new(File::open("/dev/zero").expect("there is one").into());
        assert!(file.get().is_ok());
        let other = File::open("/dev/null").expect("there is one");
        let number = file.unchecked().as_raw_fd();
        // SAFETY: the number's owner finds out.
        assert!(unsafe { nix::libc::dup2(other.as_raw_fd(), number) } >= 0, "dup2");
        assert_eq!(file.get().map(drop).map_err(|e| e.errno), Err(Errno::EBADF));
        drop(file);
        // SAFETY: asks about a number.
        assert!(unsafe { nix::libc::fcntl(number, nix::libc::F_GETFD) } >= 0, "the other file is left open");
        // SAFETY: nothing owns it any more.
        unsafe { nix::libc::close(number) };
    }
}
