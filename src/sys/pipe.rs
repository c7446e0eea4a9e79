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

    /// Fails if other code has closed one of those that have the first `len` bytes of room.
    pub(crate) fn check(&self, len: usize) -> Result<(), SysError> {
        let mut room = 0;
        for pipe in self.0.iter() {
            if room >= len {
                break;
            }
            pipe.check()?;
            room += pipe.room;
        }
        Ok(())
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

    /// Moves the first of the bytes that they hold to `into`, at most `len`. Returns how many, at least one.
    ///
    /// # Safety
    /// The `len` bytes from `into` on are the caller's to overwrite. If nothing is mapped there the call fails.
    pub(crate) unsafe fn take_some(&self, into: *mut u8, len: usize) -> Result<usize, SysError> {
        may_fail("read")?;
        let some = self.0.iter().find_map(|pipe| {
            // SAFETY: the caller's promise.
            unsafe { pipe.take(into, len) }.transpose()
        });
        some.unwrap_or(Err(SysError::new("read", Errno::EPIPE)))
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
            match splice(file, offset + held, self.write.unchecked(), len - held)? {
                0 => break,
                n => held += n,
            }
        }
        Ok(held)
    }

    /// `None`: it is empty.
    ///
    /// # Safety
    /// That of [`Pipes::take_some`].
    unsafe fn take(&self, into: *mut u8, len: usize) -> Result<Option<usize>, SysError> {
        loop {
            // SAFETY: writes at most `len` bytes, which are the caller's.
            let n = unsafe { libc::read(self.read.unchecked().as_raw_fd(), into.cast(), len) };
            match usize::try_from(n) {
                Ok(n) => return Ok((n > 0).then_some(n)),
                Err(_) => match Errno::last() {
                    Errno::EINTR => {}
                    Errno::EAGAIN => return Ok(None),
                    _ => return Err(SysError::last("read")),
                },
            }
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

/// Has `pipe` hold at most `len` bytes of `file`, at `offset`. Returns how many.
fn splice(file: BorrowedFd<'_>, offset: usize, pipe: BorrowedFd<'_>, len: usize) -> Result<usize, SysError> {
    may_fail("splice")?;
    let mut at = libc::off64_t::try_from(offset).map_err(|_| SysError::new("splice", Errno::EOVERFLOW))?;
    loop {
        // SAFETY: the kernel reads and writes the offset, and moves references to pages.
        let n = unsafe {
            libc::splice(
                file.as_raw_fd(),
                &raw mut at,
                pipe.as_raw_fd(),
                std::ptr::null_mut(),
                len,
                libc::SPLICE_F_NONBLOCK,
            )
        };
        match usize::try_from(n) {
            Ok(n) => return Ok(n),
            Err(_) if Errno::last() == Errno::EINTR => {}
            Err(_) => return Err(SysError::last("splice")),
        }
    }
}
