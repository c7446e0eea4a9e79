//! The owner's view: the device side's own mapping of a region, which no revocation touches.
//!
//! UNSAFETY: addresses inside the view. A device, other processes and every mapping of the region write there at any time,
//! so there are no references to it, only volatile and recoverable accesses.
#![expect(unsafe_code, reason = "accesses memory by address")]

use super::offsets::InRegion;
use crate::protocol::policy::OnDisabled;
use crate::raw::{self, Faulted, Primitive};
use crate::region::access_error::{AccessError, check};
use crate::region::backing::{BackingKind, File, OnRevoke};
use crate::sys::identity::Identity;
use crate::sys::known::KnownFile;
use crate::sys::map::Prot;
use crate::sys::signals::WithoutSignals;
use crate::sys::{Addr, AddrRange, SysError, futex, map, page_size};
use crate::view::{Prepared, Server, Strategy, View, ViewSpec};
use memmap2::{Advice, MmapOptions, MmapRaw};
use nix::errno::Errno;
use std::fmt;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

mod copies;

/// The device's own view of a region: always there, whatever state the region is in.
///
/// For emulating the device. Its accesses take no lock and do not wait; they fail only where the file gives no memory (it
/// was truncated, or memory ran out). Under [`Strategy::Withdraw`](crate::Strategy::Withdraw) they wait while the content
/// is being copied: loads and stores by its pointer too, if a userfaultfd can be had, and system calls by that pointer if
/// it is one for all faults ([`Support`](crate::Support)).
///
/// If the region's device is dropped on revocation ([`OnRevoke::Drop`](crate::OnRevoke)), the view is empty: a mapping
/// would pin the device.
///
/// ```
/// use revocable_mmio::AccessError;
/// # let region = revocable_mmio::Region::builder(64 << 10).build()?;
/// # let mapping = region.map(revocable_mmio::MapOptions::new())?;
/// region.disable()?;
/// let memory = region.owner();
/// memory.write(8, 1_u32)?;
/// memory.write_slice(16, b"state")?;
/// memory.fill(64, 0xff, 16)?;
/// let mut state = [0; 5];
/// memory.read_slice(16, &mut state)?;
/// assert_eq!((memory.read::<u32>(8)?, &state), (1, b"state"));
/// assert!(matches!(memory.read::<u32>(memory.len()), Err(AccessError::OutOfBounds { .. })));
/// assert!(!memory.is_empty() && !memory.as_ptr().is_null()); // for the device's code in C
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct OwnerView {
    at: Place,
    /// The process that it is mapped in. A forked child has something else there, or nothing.
    mapped_in: Identity,
    of_device: bool,
    /// False: its memory is mapped for loads only.
    writable: bool,
    /// Whether an access first makes sure that there is memory: it could not recover, and the file can lose pages.
    asks: bool,
    /// The file's page size, in bytes.
    page: usize,
}

/// Where the view is.
enum Place {
    Nowhere,
    Fixed(MmapRaw),
    /// A range whose content changes: the file that has the region's content now.
    Moving(Box<Moving>),
}

struct Moving {
    view: View,
    /// Odd during a move.
    moves: AtomicU32,
    /// A thread sleeps until the end of the move.
    waits: AtomicBool,
    /// The address was given out: accesses that the crate does not make have to wait too. True from the start where the
    /// crate's own cannot recover.
    given_out: AtomicBool,
}

impl OwnerView {
    pub(crate) fn new(file: &File, len: usize) -> Result<Self, SysError> {
        let of_device = file.kind == BackingKind::Other;
        if file.on_revoke == OnRevoke::Drop {
            let at = Place::Nowhere;
            let (mapped_in, page, writable) = (Identity::current(), file.page, file.writable);
            return Ok(Self { at, mapped_in, of_device, writable, asks: false, page });
        }
        let call = if file.kind == BackingKind::Hugetlb { "mmap(hugetlb)" } else { "mmap" };
        let errno = |e: std::io::Error| SysError::new(call, Errno::from_raw(e.raw_os_error().unwrap_or(0)));
        crate::sys::may_fail("mmap")?;
        let mut options = MmapOptions::new();
        options.offset(file.offset).len(len);
        let map = if file.writable { options.map_raw(&file.fd) } else { options.map_raw_read_only(&file.fd) };
        let map = map.map_err(errno)?;
        for advice in [Advice::DontFork, Advice::DontDump] {
            map.advise(advice).map_err(|e| SysError::new("madvise", Errno::from_raw(e.raw_os_error().unwrap_or(0))))?;
        }
        // A device's memory (VM_PFNMAP) can't be populated.
        let asks = !raw::RECOVERABLE && !of_device && map::may_shrink(file.fd.as_fd());
        let (mapped_in, page, writable) = (Identity::current(), file.page, file.writable);
        Ok(Self { at: Place::Fixed(map), mapped_in, of_device, writable, asks, page })
    }

    /// A view whose file changes, of a region of base pages.
    pub(crate) fn moving(file: &KnownFile, len: usize) -> Result<Self, SysError> {
        let view = View::reserve(ViewSpec {
            len,
            file_offset: 0,
            prot: Prot::ReadWrite,
            policy: OnDisabled::Sigbus,
            strategy: Strategy::Withdraw,
            server: Server::Kernel,
            ones: None,
            page: page_size(),
            is_device: false,
            accessors_only: false,
        })?;
        view.restore(Some(file))?;
        let given_out = AtomicBool::new(!raw::RECOVERABLE);
        let moving = Moving { view, moves: AtomicU32::new(0), waits: AtomicBool::new(false), given_out };
        let asks = !raw::RECOVERABLE;
        let mapped_in = Identity::current();
        let at = Place::Moving(Box::new(moving));
        Ok(Self { at, mapped_in, of_device: false, writable: true, asks, page: page_size() })
    }

    /// Has whatever a move to `file` needs; `None` for a view that does not move.
    pub(crate) fn prepare(&self, file: &KnownFile) -> Result<Option<Prepared>, SysError> {
        match &self.at {
            Place::Moving(moving) => moving.view.prepare_file(file).map(Some),
            Place::Nowhere | Place::Fixed(_) => Ok(None),
        }
    }

    /// Runs `change`, during which accesses wait, and then has the memory of `to`; if it fails, that of `from` again.
    ///
    /// # Errors
    /// That of `change`, or of mapping a file. If neither can be mapped, the view has no memory until the next move.
    pub(crate) fn move_with<R>(
        &self,
        prepared: Option<Prepared>,
        [from, to]: [&KnownFile; 2],
        change: impl FnOnce() -> Result<R, SysError>,
    ) -> Result<R, SysError> {
        let (Place::Moving(moving), Some(prepared)) = (&self.at, prepared) else {
            return change();
        };
        let Moving { view, moves, waits, given_out } = &**moving;
        // A handler that interrupts this thread must not wait for it.
        let _quiet = WithoutSignals::new();
        // SeqCst, as in `steady`: an access that faults from here on sees the move, or its end.
        moves.fetch_add(1, Ordering::SeqCst);
        // The crate's own accesses fault at a cover and try again. For all others a stand-in makes them wait.
        let held = if given_out.load(Ordering::SeqCst) { view.hold() } else { view.refuse(true) };
        let changed = held.and_then(|_| change());
        let mapped = match changed {
            Ok(_) => view.restore_from(prepared, to),
            Err(_) => view.restore_instead(prepared, from),
        };
        if mapped.is_err() {
            // Accesses fail instead of waiting for the next move.
            let _ = view.refuse(true);
        }
        moves.fetch_add(1, Ordering::SeqCst);
        if waits.swap(false, Ordering::SeqCst) {
            futex::wake_all(moves);
        }
        view.wake();
        mapped.and(changed)
    }

    /// Runs an access until no move has interfered with it. `is_whole` tells whether it was made.
    fn steady<R>(&self, mut access: impl FnMut() -> R, is_whole: impl Fn(&R) -> bool) -> R {
        loop {
            let before = self.moves();
            let done = access();
            if is_whole(&done) || before % 2 == 0 && before == self.moves() {
                return done;
            }
            self.wait_for_a_move();
        }
    }

    /// How many moves have begun and ended: odd during one. A forked child has no view, and no mover.
    fn moves(&self) -> u32 {
        self.mover().map_or(0, |moving| moving.moves.load(Ordering::SeqCst))
    }

    fn mover(&self) -> Option<&Moving> {
        match &self.at {
            Place::Moving(moving) if self.mapped_in.is_current() => Some(&**moving),
            _ => None,
        }
    }

    /// Async-signal-safe: the mover waits for nothing but the kernel, and no handler interrupts it.
    fn wait_for_a_move(&self) {
        let Some(Moving { moves, waits, .. }) = self.mover() else { return };
        loop {
            let seen = moves.load(Ordering::SeqCst);
            if seen % 2 == 0 {
                return;
            }
            // SeqCst, with the mover's: either it sees this and wakes, or the number has changed before this thread sleeps.
            waits.store(true, Ordering::SeqCst);
            futex::wait(moves, seen, None);
        }
    }

    /// The address of the first byte; null for an empty view.
    ///
    /// # Blocking
    /// Under [`Strategy::Withdraw`](crate::Strategy::Withdraw) it waits for the end of a copy that is under way.
    pub fn as_ptr(&self) -> *mut u8 {
        if let Place::Moving(moving) = &self.at {
            moving.given_out.store(true, Ordering::SeqCst);
            // A move that has not seen this leaves accesses by the pointer without memory until its end.
            self.wait_for_a_move();
        }
        self.start()
    }

    fn start(&self) -> *mut u8 {
        match &self.at {
            Place::Nowhere => std::ptr::null_mut(),
            Place::Fixed(map) => map.as_mut_ptr(),
            Place::Moving(moving) => moving.view.range.as_ptr(),
        }
    }

    pub(crate) fn at(&self, offset: InRegion) -> *mut u8 {
        self.start().wrapping_add(offset.0)
    }

    /// The region's length, in bytes; 0 for an empty view.
    pub fn len(&self) -> usize {
        match &self.at {
            Place::Nowhere => 0,
            Place::Fixed(map) => map.len(),
            Place::Moving(moving) => moving.view.range.len,
        }
    }

    /// True if the view has no memory: see [`OwnerView`].
    pub fn is_empty(&self) -> bool {
        matches!(self.at, Place::Nowhere)
    }

    /// Makes one access of the crate's at `offset`; `access` gets the address.
    fn access<R>(&self, offset: InRegion, access: impl Fn(*mut u8) -> Result<R, Faulted>) -> Result<R, Faulted> {
        self.steady(|| access(self.at(offset)), Result::is_ok)
    }

    /// Makes the file's pages in the range present, without changing their content.
    pub(crate) fn populate(&self, offset: InRegion, len: usize) -> Result<(), SysError> {
        // An empty view has no addresses: 0 plus the offset may be anything.
        if self.is_empty() {
            return Err(SysError::new("madvise", Errno::EBADF));
        }
        let range = AddrRange::new(Addr::of(self.start()) + offset.0, len);
        let advice = if self.writable { map::Advice::PopulateWrite } else { map::Advice::PopulateRead };
        // SAFETY: inside the view (callers pass ranges inside the region); the advice drops no content.
        match self.steady(|| unsafe { map::advise(range, advice) }, Result::is_ok) {
            // A device's memory (VM_PFNMAP) is always there.
            Err(e) if e.errno == Errno::EINVAL && self.of_device => Ok(()),
            other => other,
        }
    }

    /// One load. `offset` is in bytes, a multiple of the size of `T`.
    ///
    /// # Errors
    /// Out of bounds, misaligned, or no memory there.
    ///
    /// # Signal safety
    /// Async-signal-safe.
    pub fn read<T: Primitive>(&self, offset: usize) -> Result<T, AccessError> {
        self.check::<T>(offset)?;
        // SAFETY: inside the view and aligned, as just checked; the view lives as long as `self`. A device, mappings of the
        // region and other processes may write there at the same time: the value is then theirs or ours, never torn.
        self.access(InRegion(offset), |at| unsafe { raw::load(at.cast::<T>()) })
            .map_err(|_| AccessError::NoMemory { offset })
    }

    /// One store. `offset` is in bytes, a multiple of the size of `T`.
    ///
    /// # Errors
    /// Out of bounds, misaligned, no memory there, or a region that can be read only.
    ///
    /// # Signal safety
    /// Async-signal-safe.
    pub fn write<T: Primitive>(&self, offset: usize, value: T) -> Result<(), AccessError> {
        self.check::<T>(offset)?;
        self.check_writable(offset)?;
        // SAFETY: as in `read`.
        self.access(InRegion(offset), |at| unsafe { raw::store(at.cast::<T>(), value) })
            .map_err(|_| AccessError::NoMemory { offset })
    }

    /// How many of the `len` bytes at `offset`, which are in the view, may be accessed: all of them, unless an access
    /// without memory would raise a signal that is not recovered from.
    #[inline]
    pub(crate) fn given(&self, offset: InRegion, len: usize) -> usize {
        if !self.asks || self.gives(offset.0, len) {
            return len;
        }
        let mut given = 0;
        while given < len {
            let next = (self.page - (offset.0 + given) % self.page).min(len - given);
            if !self.gives(offset.0 + given, next) {
                break;
            }
            given += next;
        }
        given
    }

    fn gives(&self, offset: usize, len: usize) -> bool {
        let first = offset / self.page * self.page;
        // Linux before 5.14 does not know the advice (EINVAL).
        self.populate(InRegion(first), offset + len - first).map_or_else(|e| e.errno == Errno::EINVAL, |()| true)
    }

    /// Checks one access: bounds, alignment, memory.
    fn check<T: Primitive>(&self, offset: usize) -> Result<(), AccessError> {
        check::<T>(offset, self.len())?;
        if self.given(InRegion(offset), T::SIZE) == T::SIZE { Ok(()) } else { Err(AccessError::NoMemory { offset }) }
    }

    fn check_writable(&self, offset: usize) -> Result<(), AccessError> {
        if self.writable { Ok(()) } else { Err(AccessError::ReadOnly { offset }) }
    }
}

impl Drop for OwnerView {
    fn drop(&mut self) {
        if !self.mapped_in.is_current() {
            // munmap would remove what the child has mapped there by now.
            std::mem::forget(std::mem::replace(&mut self.at, Place::Nowhere));
        }
    }
}

impl fmt::Debug for OwnerView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OwnerView").field("at", &self.start()).field("len", &self.len()).finish()
    }
}
