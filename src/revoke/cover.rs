//! Covers: what replaces a revoked mapping and refuses by itself, with no monitor and no privilege.
//!
//! - The empty file: an access beyond the end of a file is SIGBUS, BUS_ADRERR at the exact byte, EFAULT for a
//!   system call (`shmem_fault`): to the letter what vfio-pci answers.
//! - All-ones: private copies of a sealed file of 0xff bytes, tiled over the range. A store goes to a private page
//!   that vanishes with the cover.
//!
//! Both hold no userfaultfd, so nothing that happens to one can open them.

use super::parts::Part;
use super::{Content, Place, View};
use crate::OnDisabled;
use crate::sync::inside::Mutex;
use crate::sys::map;
use crate::sys::uffd::Uffd;
use crate::sys::{AddrRange, SysError};
use nix::errno::Errno;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Weak};

/// All-ones covers are made of at most this many mappings, so that a large mapping does not exhaust
/// vm.max_map_count (65,530 by default).
const MOST_TILES: usize = 256;
const SMALLEST_TILE: usize = 2 << 20;

/// A sealed file full of 0xff bytes.
#[derive(Debug)]
pub(crate) struct Tile {
    fd: OwnedFd,
    len: usize,
}

impl Tile {
    /// The tile for ranges of `len` bytes, shared by all that need the same.
    pub(crate) fn for_range(len: usize) -> Result<Arc<Self>, SysError> {
        static TILES: Mutex<Vec<(usize, Weak<Tile>)>> = Mutex::new(Vec::new());
        let size = len.div_ceil(MOST_TILES).max(SMALLEST_TILE).next_power_of_two();
        let mut tiles = TILES.lock();
        tiles.retain(|(_, tile)| tile.strong_count() > 0);
        if let Some(tile) = tiles.iter().find(|(s, _)| *s == size).and_then(|(_, tile)| tile.upgrade()) {
            return Ok(tile);
        }
        let tile = Arc::new(Self::make(size)?);
        tiles.push((size, Arc::downgrade(&tile)));
        Ok(tile)
    }

    fn make(len: usize) -> Result<Self, SysError> {
        let fd = map::memfd(c"revocable-ones", len as u64, 0)?;
        let file = File::from(fd);
        let errno = |e: std::io::Error| SysError::new("write", Errno::from_raw(e.raw_os_error().unwrap_or(0)));
        crate::sys::may_fail("write")?;
        std::io::copy(&mut std::io::repeat(0xff).take(len as u64), &mut &file).map_err(errno)?;
        map::seal(file.as_fd(), true)?;
        Ok(Self { fd: file.into(), len })
    }
}

/// The empty file that refusing ranges are mappings of.
fn empty_file() -> Result<Arc<OwnedFd>, SysError> {
    static EMPTY: Mutex<Option<Arc<OwnedFd>>> = Mutex::new(None);
    let mut empty = EMPTY.lock();
    if let Some(fd) = &*empty {
        return Ok(Arc::clone(fd));
    }
    let fd = map::memfd(c"revocable-empty", 0, 0)?;
    // Not sealed against writing, which would forbid writable shared mappings of it: there is nothing to write to,
    // and it can't grow.
    map::seal(fd.as_fd(), false)?;
    let fd = Arc::new(fd);
    *empty = Some(Arc::clone(&fd));
    Ok(fd)
}

/// Makes what covers are made of, so that revoking does not have to.
pub(crate) fn prepare() -> Result<(), SysError> {
    map::maps();
    empty_file().map(drop)
}

/// Makes a range that its owner has given up, and that could not be unmapped, reach nothing.
#[expect(unsafe_code, reason = "UNSAFETY: replaces mappings in a range that its owner has given up")]
pub(super) fn shut(range: AddrRange) {
    let covered = empty_file().and_then(|empty| {
        // SAFETY: the callers own the range, and nobody uses it any more.
        unsafe { map::map_shared(range, empty.as_fd(), 0, map::Prot::None) }
    });
    if covered.is_err() {
        // SAFETY: as above; nothing is moved.
        let _ = unsafe { map::protect(range, map::Prot::None) };
    }
}

impl View {
    /// Covers the range as the policy says. The kernel drops the range's pages with what it replaces.
    pub(super) fn cover(&self, place: &mut Place) -> Result<(), SysError> {
        match (&self.ones, self.policy) {
            (Some(tile), OnDisabled::AllOnes) => self.cover_by(place, |part| cover_ones(part, tile)),
            _ => self.cover_empty(place),
        }
    }

    pub(super) fn cover_empty(&self, place: &mut Place) -> Result<(), SysError> {
        let empty = empty_file()?;
        self.cover_by(place, |part| {
            // SAFETY: the view's own range. Nobody can rely on what is there: it is being revoked, and the write side
            // of the memory lock keeps the monitor and other resolvers out.
            #[expect(unsafe_code, reason = "UNSAFETY: replaces mappings in the view's own range")]
            unsafe {
                map::map_shared(part.range, empty.as_fd(), 0, part.prot)
            }
        })
    }

    fn cover_by(&self, place: &mut Place, cover: impl Fn(&Part) -> Result<(), SysError>) -> Result<(), SysError> {
        if crate::sys::left_out("cover") {
            place.content = Content::Covered;
            return Ok(());
        }
        place.torn = true;
        match &place.parts {
            Some(parts) => parts.iter().try_for_each(cover)?,
            None => cover(&Part { range: self.range, prot: self.prot })?,
        }
        place.content = Content::Covered;
        place.torn = false;
        Ok(())
    }

    /// Refuses in place: nothing is replaced, the mapping's pages are dropped and its faults are SIGBUS.
    ///
    /// Between the two registrations the kernel fills in pages by itself; the zap that closes the window drops them.
    pub(super) fn bar(&self, place: &mut Place) -> Result<(), SysError> {
        let refuser = super::refuser()?;
        let theirs = self.registered_with(place);
        let own = theirs.is_some_and(|uffd| std::ptr::eq(uffd, &*refuser));
        if !own {
            for range in self.part_ranges(place) {
                if let Some(uffd) = theirs {
                    uffd.unregister(range)?;
                }
                refuser.register(range, true)?;
            }
        }
        self.zap(place)?;
        place.content = Content::Barred;
        Ok(())
    }

    pub(super) fn unbar(&self, place: &mut Place) -> Result<(), SysError> {
        if !matches!(self.server, super::Server::Own(_)) || !self.served_live() {
            let refuser = super::refuser()?;
            // From here on the kernel fills pages in; if a step fails, the caller has all of it refused anew.
            place.content = Content::Live;
            self.part_ranges(place).into_iter().try_for_each(|range| refuser.unregister(range))?;
            if self.served_live() {
                self.serve(place)?;
            }
        }
        place.content = Content::Live;
        Ok(())
    }

    /// The userfaultfd that the range is registered with now.
    fn registered_with<'a>(&'a self, place: &Place) -> Option<&'a Uffd> {
        let registered = match place.content {
            Content::Live => self.served_live() && !place.detached,
            Content::Parked => true,
            _ => false,
        };
        self.server.uffd().filter(|_| registered)
    }
}

#[expect(unsafe_code, reason = "UNSAFETY: replaces mappings in the view's own range")]
fn cover_ones(part: &Part, tile: &Tile) -> Result<(), SysError> {
    let mut done = 0;
    while done < part.range.len {
        let next = AddrRange::new(part.range.addr + done, tile.len.min(part.range.len - done));
        // SAFETY: as in `cover_empty`; part of the view's own range.
        unsafe { map::map_private(next, tile.fd.as_fd(), 0, part.prot) }?;
        done += next.len;
    }
    Ok(())
}
