//! Covers: mappings that refuse in a revoked range, with no thread, no userfaultfd and no privilege.
//!
//! - The empty file: an access beyond the end of a file is SIGBUS, BUS_ADRERR at the exact byte, EFAULT for a system call
//!   (`shmem_fault`), exactly what vfio-pci gives.
//! - All-ones: private copies of a sealed file of 0xff bytes, tiled over the range. A store goes to a private page
//!   that vanishes with the cover.

use super::rights::Part;
use super::{Content, Standing, View};
use crate::sync::inside::Mutex;
use crate::sys::identity::PerProcess;
use crate::sys::known::KnownFile;
use crate::sys::map::{self, Prot, Sealed};
use crate::sys::{AddrRange, SysError};
use nix::errno::Errno;
use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::sync::{Arc, Weak};

/// All-ones covers are at most this many mappings, so that a large mapping does not exhaust vm.max_map_count (65,530 by
/// default).
const MOST_TILES: usize = 256;
const SMALLEST_TILE: usize = 2 << 20;

/// A sealed file full of 0xff bytes, and its length.
#[derive(Debug)]
pub(crate) struct Ones {
    file: KnownFile,
    len: usize,
}

impl Ones {
    /// Lengths that together need every size of file that ranges of up to `largest` bytes do.
    pub(crate) fn sizes(largest: usize) -> Vec<usize> {
        let powers = std::iter::successors(Some(SMALLEST_TILE), |size| size.checked_mul(2));
        let needed = powers.map_while(|size| size.checked_mul(MOST_TILES));
        let mut sizes: Vec<_> = needed.take_while(|len| *len < largest).collect();
        sizes.push(largest);
        sizes
    }

    /// The size of the file for ranges of `len` bytes, in bytes.
    pub(crate) fn size_of_file(len: usize) -> usize {
        len.div_ceil(MOST_TILES).max(SMALLEST_TILE).next_power_of_two()
    }

    /// The file for ranges of `len` bytes, shared by all ranges that need the same one.
    pub(crate) fn for_range(len: usize) -> Result<Arc<Self>, SysError> {
        type Made = Vec<(usize, Weak<Ones>)>;
        static MADE: PerProcess<Mutex<Made>> = PerProcess::new(Mutex::default);
        let size = Self::size_of_file(len);
        let mut made = MADE.get().lock();
        made.retain(|(_, ones)| ones.strong_count() > 0);
        let known = made.iter().filter(|(s, _)| *s == size).filter_map(|(_, ones)| ones.upgrade());
        if let Some(ones) = known.into_iter().find(|ones| ones.file.get().is_ok()) {
            return Ok(ones);
        }
        let ones = Arc::new(Self::make(size)?);
        made.push((size, Arc::downgrade(&ones)));
        Ok(ones)
    }

    fn make(len: usize) -> Result<Self, SysError> {
        let fd = map::memfd(c"revocable-ones", len as u64, 0)?;
        let file = File::from(fd);
        let errno = |e: std::io::Error| SysError::new("write", Errno::from_raw(e.raw_os_error().unwrap_or(0)));
        crate::sys::may_fail("write")?;
        std::io::copy(&mut std::io::repeat(0xff).take(len as u64), &mut &file).map_err(errno)?;
        // Pages that another CPU has yet to put on a list look as if they were pinned (`memfd_wait_for_pins`): EBUSY, for a moment.
        let mut tries = 0..8;
        loop {
            match map::seal(file.as_fd(), Sealed::Content) {
                Err(e) if e.errno == Errno::EBUSY && tries.next().is_some() => {}
                sealed => break sealed?,
            }
        }
        Ok(Self { file: KnownFile::new(file.into()), len })
    }
}

/// The empty file that refusing ranges map, just checked. If it was closed, or its number has become another file's, it is
/// made anew.
fn empty_file() -> Result<Arc<KnownFile>, SysError> {
    static EMPTY: PerProcess<Mutex<Option<Arc<KnownFile>>>> = PerProcess::new(|| Mutex::new(None));
    let mut empty = EMPTY.get().lock_quietly();
    if let Some(file) = empty.as_ref().filter(|file| file.get().is_ok()) {
        return Ok(Arc::clone(file));
    }
    let fd = map::memfd(c"revocable-empty", 0, 0)?;
    // Not sealed against writing, which would forbid writable shared mappings of it. There is nothing to write to, and the
    // file cannot grow.
    map::seal(fd.as_fd(), Sealed::Size)?;
    let file = Arc::new(KnownFile::new(fd));
    *empty = Some(Arc::clone(&file));
    Ok(file)
}

/// Makes the empty file, so that revoking does not have to.
pub(super) fn prepare() -> Result<(), SysError> {
    empty_file().map(drop)
}

/// Makes a range reach nothing that its owner has given up and that could not be unmapped.
#[expect(unsafe_code, reason = "UNSAFETY: replaces mappings in a range that its owner has given up")]
pub(super) fn shut_left_over(range: AddrRange) {
    let covered = empty_file().and_then(|empty| {
        // SAFETY: the callers own the range, and nothing uses it any more.
        unsafe { map::map_shared(range, empty.unchecked(), 0, Prot::None) }
    });
    if covered.is_err() {
        // SAFETY: as above; nothing is moved.
        let _ = unsafe { map::protect(range, Prot::None) };
    }
}

impl View {
    #[expect(unsafe_code, reason = "UNSAFETY: replaces mappings in the view's own range")]
    pub(super) fn cover_empty(&self, standing: &mut Standing) -> Result<(), SysError> {
        let empty = empty_file()?;
        self.cover_by(standing, self.range.len, |tile, prot| {
            // SAFETY: the view's own range. Nothing can rely on its content: it is being revoked, and the write side of the
            // memory lock keeps the monitor and other resolvers out.
            unsafe { map::map_shared(tile, empty.unchecked(), 0, prot) }
        })
    }

    #[expect(unsafe_code, reason = "UNSAFETY: replaces mappings in the view's own range")]
    pub(super) fn cover_ones(&self, standing: &mut Standing) -> Result<(), SysError> {
        let kept = self.spec.ones.as_ref().filter(|ones| ones.file.get().is_ok());
        let ones = kept.map_or_else(|| Ones::for_range(self.range.len), |ones| Ok(Arc::clone(ones)))?;
        self.cover_by(standing, ones.len, |tile, prot| {
            // SAFETY: as in `cover_empty`.
            unsafe { map::map_private(tile, ones.file.get()?, 0, prot) }
        })
    }

    /// Covers the range by tiles of at most `size` bytes. The kernel drops the range's pages with the replaced mappings.
    fn cover_by(
        &self,
        standing: &mut Standing,
        size: usize,
        cover: impl Fn(AddrRange, Prot) -> Result<(), SysError>,
    ) -> Result<(), SysError> {
        if !crate::sys::left_out("cover") {
            for Part { range, prot } in self.parts() {
                for tile in range.pieces(size) {
                    self.replace(standing, tile, || cover(tile, prot))?;
                }
            }
        }
        standing.content = Content::Cover;
        Ok(())
    }

    /// The last resort, where there is no memory or no room for another mapping: takes the rights of the present content
    /// away. Its pages are dropped, and a page that comes in has no rights either.
    #[expect(unsafe_code, reason = "UNSAFETY: changes access rights of the view's own range")]
    pub(super) fn shut(&self, standing: &mut Standing) -> Result<(), SysError> {
        let hole = standing.hole.unwrap_or(AddrRange::new(self.range.end(), 0));
        self.range.around(hole).try_for_each(|part| {
            // SAFETY: the view's own range; nothing is moved or lost.
            unsafe { map::protect_around_holes(part, Prot::None) }
        })?;
        standing.content = Content::Unsettled;
        Ok(())
    }
}
