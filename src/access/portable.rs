//! Plain volatile and atomic accesses, for architectures without a recovery file.
//!
//! No plain access can be skipped when it faults, so the handler lets it end elsewhere: it puts a page of private memory,
//! a *stand-in*, under it. The access then reports [`Faulted`], and what belongs there is put back (`View::mend`). Only
//! memory that fails although its region is enabled comes to that (a file that was truncated, a monitor that died): who
//! accesses a mapping keeps it from being revoked meanwhile, by a pass of the protocol's second gate or by the memory lock,
//! so no stand-in opens a revoked range; the owner's view is never revoked. Outside of [`recovering`] an access is what a raw
//! pointer's is. None of this is for signal handlers that interrupt such an access of their own thread.
//!
//! Another thread may access the page while a stand-in is there, and does not fault. So every access compares the count of
//! stand-ins before and after, by page, and is made again if it may have met one: what it met then has vanished. (Pages
//! share [`STAND_INS`]' entries, so an atomic operation can be done twice if memory fails elsewhere at that very moment.)
//! A raw pointer has no such protection: for the moment it meets zeroes instead of SIGBUS.
#![expect(unsafe_code, reason = "plain accesses through raw pointers, and a page put under one that faults")]
// UNSAFETY: volatile and atomic accesses within `raw`'s contract while nothing is revoked.

use super::primitive::{AtomicPrimitive, Primitive};
use super::raw::{Faulted, StandIn};
use crate::sys::AddrRange;
use crate::sys::map::Prot;
// Not from `crate::sync`: a signal handler uses these, and the model checker's atomics aren't async-signal-safe.
use core::ffi::c_int;
use core::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering::SeqCst, compiler_fence, fence};
use nix::errno::Errno;
use nix::libc::{self, ucontext_t};
use std::cell::Cell;

/// Accesses of mappings need a pass, and what they met has to be put back.
pub(crate) const RECOVERABLE: bool = false;

/// What the calling thread's handler needs to know, and what it answers. No destructor, so a handler may use it.
struct Own {
    /// Where accesses may be made for which somebody puts back what a stand-in replaces.
    range: Cell<Option<AddrRange>>,
    /// The address of the access under way, 0 for none.
    access: Cell<usize>,
    stand_in: Cell<Option<StandIn>>,
}

thread_local! {
    static OWN: Own = const { Own { range: Cell::new(None), access: Cell::new(0), stand_in: Cell::new(None) } };
}

/// For the pages that share an entry: stand-ins now in the low half, so far in the high half.
static STAND_INS: [AtomicU64; 256] = [const { AtomicU64::new(0) }; 256];
const ONE_MORE: u64 = (1 << 32) + 1;

/// Counts a stand-in of some pages in or out.
fn count(pages: AddrRange, by: impl Fn(&AtomicU64) -> u64) {
    let page = crate::sys::page_size();
    let numbers = pages.addr / page..pages.end() / page;
    numbers.take(STAND_INS.len()).for_each(|number| {
        by(&STAND_INS[number % STAND_INS.len()]);
    });
}

/// Makes an access, unless it meets a stand-in of its own; one that may have met another thread's is made again.
#[inline]
fn attempt<R>(addr: usize, access: impl Fn() -> R) -> Result<R, Faulted> {
    OWN.with(|own| {
        if own.range.get().is_none() {
            return Ok(access());
        }
        let stand_ins = &STAND_INS[addr / crate::sys::page_size() % STAND_INS.len()];
        loop {
            if own.stand_in.get().is_some() {
                return Err(Faulted);
            }
            // SeqCst, with the fence below: who may have met a stand-in sees it counted, before or after.
            let before = stand_ins.load(SeqCst);
            if before % (1 << 32) > 0 {
                // Another thread's, which puts back what belongs there and waits for nobody.
                std::thread::yield_now();
                continue;
            }
            // Nested in a signal handler, it comes back to the outer one.
            let outer = own.access.replace(addr);
            compiler_fence(SeqCst);
            let result = access();
            compiler_fence(SeqCst);
            own.access.set(outer);
            fence(SeqCst);
            if stand_ins.load(SeqCst) == before {
                return Ok(result);
            }
        }
    })
}

/// Runs some accesses inside of `range`, and has `put_back` put back what the handler has replaced under one of them, if any.
#[inline]
pub(crate) fn recovering<R>(range: AddrRange, accesses: impl FnOnce() -> R, put_back: impl FnOnce(StandIn)) -> R {
    // Nested in a signal handler, it comes back to the outer ones, and leaves their stand-in to them.
    let (outer, theirs) = OWN.with(|own| (own.range.replace(Some(range)), own.stand_in.get().is_some()));
    let result = accesses();
    OWN.with(|own| own.range.set(outer));
    if let Some(stand_in) = OWN.with(|own| own.stand_in.get()).filter(|_| !theirs) {
        put_back(stand_in);
        OWN.with(|own| own.stand_in.set(None));
        count(stand_in.range, |entry| entry.fetch_sub(1, SeqCst));
    }
    result
}

/// Puts a stand-in under the access that faulted at `address`, if it is one of this file's.
///
/// # Safety
///
/// Called by the handler of `signal`, in the thread that faulted.
pub(crate) unsafe fn recover(signal: c_int, address: usize, _context: *mut ucontext_t) -> bool {
    let page = crate::sys::page_size();
    let (range, access, known) = OWN.with(|own| (own.range.get(), own.access.get(), own.stand_in.get()));
    // An aligned access lies in one page; some faults tell no more than the page.
    let Some(range) = range.filter(|_| access != 0 && access / page == address / page) else { return false };
    let errno = Errno::last_raw();
    let put = match known {
        // Another thread has put back what belongs there, before this access could end.
        Some(known) => known.range.contains(access) && put_pages(known.range).is_ok(),
        // All of it where a page by itself can't be had: of a huge page only the whole can be replaced
        // (`hugetlb_vm_op_split`). At the limit of mappings (vm.max_map_count) nothing can be had, and the fault kills.
        None => {
            let rights = (signal == libc::SIGSEGV).then(|| if is_readable(access) { Prot::Read } else { Prot::None });
            [AddrRange::new(access / page * page, page), range].into_iter().any(|range| {
                // Before the pages are there: see `attempt`.
                count(range, |entry| entry.fetch_add(ONE_MORE, SeqCst));
                let put = put_pages(range).is_ok();
                match put {
                    true => OWN.with(|own| own.stand_in.set(Some(StandIn { range, rights }))),
                    false => count(range, |entry| entry.fetch_sub(1, SeqCst)),
                }
                put
            })
        }
    };
    Errno::set_raw(errno);
    put
}

/// Is a byte there that this process may read? Async-signal-safe: a system call.
fn is_readable(at: usize) -> bool {
    let mut byte = 0_u8;
    let here = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    let there = libc::iovec { iov_base: AddrRange::new(at, 1).as_ptr().cast(), iov_len: 1 };
    let own = nix::unistd::getpid().as_raw();
    // SAFETY: one byte into this frame's own; the other place the kernel checks, and answers EFAULT.
    unsafe { libc::process_vm_readv(own, &raw const here, 1, &raw const there, 1, 0) == 1 }
}

/// Async-signal-safe: a system call.
fn put_pages(range: AddrRange) -> Result<(), Errno> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
    // SAFETY: of a range that this crate mapped, by `recovering`'s callers. Nothing is lost: it is a file's memory, and what
    // stood there is put back before the mapping can be revoked.
    let put = unsafe { libc::mmap(range.as_ptr().cast(), range.len, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
    if put == libc::MAP_FAILED { Err(Errno::last()) } else { Ok(()) }
}

/// One load.
///
/// # Safety
///
/// `raw`'s contract, and the mapping can't be revoked meanwhile.
#[inline(always)]
pub(crate) unsafe fn load<T: Primitive>(p: *const T) -> Result<T, Faulted> {
    // SAFETY: the caller's contract; volatile, as anyone may write the memory.
    attempt(p.addr(), || unsafe { p.read_volatile() })
}

/// One store.
///
/// # Safety
///
/// `raw`'s contract, and the mapping can't be revoked meanwhile.
#[inline(always)]
pub(crate) unsafe fn store<T: Primitive>(p: *mut T, value: T) -> Result<(), Faulted> {
    // SAFETY: the caller's contract; volatile, as anyone may use the memory.
    attempt(p.addr(), || unsafe { p.write_volatile(value) })
}

/// Does `$body` with `$atomic` bound to the atomic at `$p`.
macro_rules! with_atomic {
    ($ty:ty, $p:expr, |$atomic:ident| $body:expr) => {
        match <$ty>::SIZE {
            1 => with_atomic!(AtomicU8, u8, $p, $atomic, $body),
            2 => with_atomic!(AtomicU16, u16, $p, $atomic, $body),
            4 => with_atomic!(AtomicU32, u32, $p, $atomic, $body),
            _ => with_atomic!(AtomicU64, u64, $p, $atomic, $body),
        }
    };
    ($kind:ident, $int:ident, $p:expr, $atomic:ident, $body:expr) => {{
        // SAFETY: the caller's contract: aligned and reachable; all other users of the memory are atomic or volatile.
        let $atomic = unsafe { $kind::from_ptr($p.cast::<$int>()) };
        $body
    }};
}

/// Stores `new` if the memory holds `old`; otherwise `Ok(Err(what it holds))`.
///
/// # Safety
///
/// `raw`'s contract, and the mapping can't be revoked meanwhile.
#[inline]
pub(crate) unsafe fn compare_exchange<T: AtomicPrimitive>(p: *mut T, old: T, new: T) -> Result<Result<T, T>, Faulted> {
    use super::primitive::sealed::Bits;
    let (old, new) = (old.to_bits(), new.to_bits());
    attempt(p.addr(), || {
        with_atomic!(T, p, |atomic| {
            match atomic.compare_exchange(Bits::from_bits(old), Bits::from_bits(new), SeqCst, SeqCst) {
                Ok(before) => Ok(T::from_bits(before.to_bits())),
                Err(before) => Err(T::from_bits(before.to_bits())),
            }
        })
    })
}

/// Stores `value`; the value before.
///
/// # Safety
///
/// `raw`'s contract, and the mapping can't be revoked meanwhile.
#[inline]
pub(crate) unsafe fn swap<T: AtomicPrimitive>(p: *mut T, value: T) -> Result<T, Faulted> {
    use super::primitive::sealed::Bits;
    attempt(p.addr(), || {
        with_atomic!(T, p, |atomic| T::from_bits(atomic.swap(Bits::from_bits(value.to_bits()), SeqCst).to_bits()))
    })
}

/// Adds `value`, wrapping; the value before.
///
/// # Safety
///
/// `raw`'s contract, and the mapping can't be revoked meanwhile.
#[inline]
pub(crate) unsafe fn fetch_add<T: AtomicPrimitive>(p: *mut T, value: T) -> Result<T, Faulted> {
    use super::primitive::sealed::Bits;
    attempt(p.addr(), || {
        with_atomic!(T, p, |atomic| T::from_bits(atomic.fetch_add(Bits::from_bits(value.to_bits()), SeqCst).to_bits()))
    })
}

/// Nothing to unroll: bulk copies go by words, here.
///
/// # Safety
///
/// None; the others' signature.
pub(crate) unsafe fn rounds_out(_dst: *mut u8, _src: *const u8, _len: usize) -> usize {
    0
}

/// Nothing to unroll.
///
/// # Safety
///
/// None; the others' signature.
pub(crate) unsafe fn rounds_in(_dst: *mut u8, _src: *const u8, _len: usize) -> usize {
    0
}

/// There are no tables.
pub(crate) fn keep_loaded() {}
