//! Pipes that hold the pages of a file: splice(2).
//!
//! A pipe refers to the pages of the page cache themselves, and nothing is copied: what is stored to them afterwards is in
//! the pipe too. It keeps them when the file lets go of them.
#![expect(unsafe_code, reason = "splice(2), pipe(2) and read(2) have no safe form without more features of nix")]

use super::known::KnownFile;
use super::{SysError, may_fail, page_size};
use nix::errno::Errno;
use nix::libc;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Empty pipes with room for a number of bytes together. One has room for 1 MiB at most without privilege
/// (`pipe-max-size`, pipe(7)), and for less where the user has many (`pipe-user-pages-soft`).
#[derive(Debug)]
pub(crate) struct Pipes(Vec<Pipe>);

/// More pipes than this are not made for a room.
const MOST: usize = 64;

impl Pipes {
    pub(crate) fn new(want: usize) -> Result<Self, SysError> {
        let mut pipes = Vec::new();
        let mut room = 0;
        while room < want {
            if pipes.len() == MOST {
                return Err(SysError::new("fcntl(F_SETPIPE_SZ)", Errno::EPERM));
            }
            let pipe = Pipe::new(want - room)?;
            room += pipe.room;
            pipes.push(pipe);
        }
        Ok(Self(pipes))
    }

    /// Fails if other code has closed one.
    pub(crate) fn check(&self) -> Result<(), SysError> {
        self.0.iter().try_for_each(Pipe::check)
    }

    /// Holds the pages of `file` from `offset` on, `len` bytes of them, at most the room. Both are multiples of the page
    /// size. Returns how many bytes: fewer only where the file ends. If it ends inside of a page and grows meanwhile, the
    /// rest is not held.
    ///
    /// A page that was never written (a hole, or only allocated) is held as zeroes, and not as what is stored to it later
    /// (`shmem_file_splice_read`).
    pub(crate) fn hold(&self, file: BorrowedFd<'_>, offset: usize, len: usize) -> Result<usize, SysError> {
        let mut held = 0;
        for pipe in &self.0 {
            let want = pipe.room.min(len - held);
            let got = pipe.hold(file, offset + held, want)?;
            held += got;
            if got < want || held == len {
                break;
            }
        }
        Ok(held)
    }

    /// Copies all of the `held` bytes that they hold into `file`, from `offset` on.
    pub(crate) fn pour(&self, file: BorrowedFd<'_>, offset: usize, held: usize) -> Result<(), SysError> {
        let mut poured = 0;
        while poured < held {
            poured += self.pour_some(file, offset + poured, held - poured)?;
        }
        Ok(())
    }

    /// Copies the first of the `held` bytes that they hold into `file`, at `offset`. Returns how many, at least one.
    pub(crate) fn pour_some(&self, file: BorrowedFd<'_>, offset: usize, held: usize) -> Result<usize, SysError> {
        self.0
            .iter()
            .find_map(|pipe| pipe.pour(file, offset, held).transpose())
            .unwrap_or(Err(SysError::new("splice(to a file)", Errno::EPIPE)))
    }

    /// Lets go of whatever they hold.
    pub(crate) fn clear(&self) {
        self.0.iter().for_each(Pipe::clear);
    }
}

#[derive(Debug)]
struct Pipe {
    read: KnownFile,
    write: KnownFile,
    /// How many bytes of whole pages it can hold.
    room: usize,
}

impl Pipe {
    /// A pipe with room for `want` bytes, or for as many as the user may have (`pipe-user-pages-soft`, pipe(7)).
    fn new(want: usize) -> Result<Self, SysError> {
        may_fail("pipe2")?;
        let mut ends = [-1; 2];
        // SAFETY: writes two descriptors into the array.
        if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC | libc::O_NONBLOCK) } < 0 {
            return Err(SysError::last("pipe2"));
        }
        // SAFETY: descriptors that the kernel has just given to this call alone.
        let [read, write] = ends.map(|end| KnownFile::new(unsafe { OwnedFd::from_raw_fd(end) }));
        for size in [want, want.min(1 << 20)] {
            let size = libc::c_int::try_from(size).unwrap_or(libc::c_int::MAX);
            // SAFETY: changes a property of a pipe made here. A refusal leaves it as large as it is.
            if unsafe { libc::fcntl(ends[1], libc::F_SETPIPE_SZ, size) } >= 0 {
                break;
            }
        }
        // SAFETY: asks for that property.
        let got = unsafe { libc::fcntl(ends[1], libc::F_GETPIPE_SZ) };
        // One slot a page. The size is a multiple of the page size.
        match usize::try_from(got) {
            Ok(room) if room >= page_size() => Ok(Self { read, write, room }),
            _ => Err(SysError::new("fcntl(F_GETPIPE_SZ)", Errno::last())),
        }
    }

    /// Fails if other code has closed it.
    fn check(&self) -> Result<(), SysError> {
        self.read.get().and_then(|_| self.write.get()).map(drop)
    }

    fn hold(&self, file: BorrowedFd<'_>, offset: usize, len: usize) -> Result<usize, SysError> {
        let mut held = 0;
        // Parts of pages would take more slots than there are.
        while held < len && held % page_size() == 0 {
            match splice(
                "splice(from a file)",
                (file, Some(offset + held)),
                (self.write.unchecked(), None),
                len - held,
            )? {
                0 => break,
                n => held += n,
            }
        }
        Ok(held)
    }

    /// `None`: it is empty.
    fn pour(&self, file: BorrowedFd<'_>, offset: usize, len: usize) -> Result<Option<usize>, SysError> {
        match splice("splice(to a file)", (self.read.unchecked(), None), (file, Some(offset)), len) {
            Ok(0) => Ok(None),
            Err(e) if e.errno == Errno::EAGAIN => Ok(None),
            poured => poured.map(Some),
        }
    }

    fn clear(&self) {
        let mut scrap = [0u8; 4096];
        loop {
            // SAFETY: writes into the array, at most its length.
            let n = unsafe { libc::read(self.read.unchecked().as_raw_fd(), scrap.as_mut_ptr().cast(), scrap.len()) };
            if n == 0 || n < 0 && Errno::last() != Errno::EINTR {
                return;
            }
        }
    }
}

/// Moves at most `len` bytes from a file to another, at an offset for the one that is no pipe. Returns how many.
fn splice(
    call: &'static str,
    from: (BorrowedFd<'_>, Option<usize>),
    to: (BorrowedFd<'_>, Option<usize>),
    len: usize,
) -> Result<usize, SysError> {
    may_fail(call)?;
    let offset = |of: Option<usize>| of.map(libc::off64_t::try_from).transpose();
    let too_large = |_| SysError::new(call, Errno::EOVERFLOW);
    let mut at = [offset(from.1).map_err(too_large)?, offset(to.1).map_err(too_large)?];
    let [from_at, to_at] = at.each_mut().map(|at| at.as_mut().map_or(std::ptr::null_mut(), std::ptr::from_mut));
    loop {
        // SAFETY: the kernel reads and writes the offsets, and moves references to pages, or copies into a file.
        let n =
            unsafe { libc::splice(from.0.as_raw_fd(), from_at, to.0.as_raw_fd(), to_at, len, libc::SPLICE_F_NONBLOCK) };
        match usize::try_from(n) {
            Ok(n) => return Ok(n),
            Err(_) if Errno::last() == Errno::EINTR => {}
            Err(_) => return Err(SysError::last(call)),
        }
    }
}
