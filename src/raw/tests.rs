//! Accesses of every kind and width: whole on good memory, an error on revoked memory, never a signal that kills.
#![expect(clippy::multiple_unsafe_ops_per_block, reason = "each block's operations have one proof")]

use super::contract::Rounds;
use super::{self as raw, Cpu, Faulted, Medium, signal};
use crate::raw::signal::tests::handlers::needs_recovery;
use crate::raw::test_memory::{PAGE, bus, bus_after, good, segv};
use nix::libc;
use std::sync::LazyLock;

macro_rules! integers {
    ($($ty:ident)*) => { $(
        #[test]
        fn $ty() {
            signal::install().unwrap();
            let p = good(PAGE).cast::<$ty>();
            // SAFETY: all accesses are inside of pages that this test has made and only it knows. Those that fault recover.
            unsafe {
                for value in [0, 1, 0x5a, <$ty>::MAX, <$ty>::MIN, !0, !1] {
                    assert_eq!(raw::store(p, value), Ok(()));
                    assert_eq!(raw::load(p), Ok(value));
                    assert_eq!(*p.add(1), 0, "wrote beyond itself");
                    assert_eq!(raw::compare_exchange(p, value, 3), Ok(Ok(value)));
                    assert_eq!(raw::compare_exchange(p, !3, 9), Ok(Err(3)));
                    assert_eq!(raw::swap(p, value), Ok(3));
                    assert_eq!(raw::fetch_add(p, 1), Ok(value));
                    assert_eq!(raw::load(p), Ok(value.wrapping_add(1)));
                    assert_eq!(raw::store(p, 0b1100), Ok(()));
                    assert_eq!(raw::fetch_or(p, 0b0011), Ok(0b1100));
                    assert_eq!(raw::fetch_and(p, 0b0110), Ok(0b1111));
                    assert_eq!(raw::fetch_xor(p, 0b0101), Ok(0b0110));
                    assert_eq!(raw::load(p), Ok(0b0011));
                }
                if !raw::RECOVERABLE {
                    return;
                }
                for p in [bus(PAGE), segv(PAGE)] {
                    for p in [p.cast::<$ty>(), p.add(PAGE - size_of::<$ty>()).cast()] {
                        assert_eq!(raw::load(p), Err(Faulted));
                        assert_eq!(raw::store(p, 1), Err(Faulted));
                        assert_eq!(raw::compare_exchange(p, 0, 1), Err(Faulted));
                        assert_eq!(raw::swap(p, !0), Err(Faulted));
                        assert_eq!(raw::fetch_add(p, 1), Err(Faulted));
                        assert_eq!(raw::fetch_or(p, 1), Err(Faulted));
                        assert_eq!(raw::fetch_and(p, 1), Err(Faulted));
                        assert_eq!(raw::fetch_xor(p, 1), Err(Faulted));
                    }
                }
            }
        }
    )* };
}

/// Every operation at every width, on good memory, on SIGBUS and on SIGSEGV; all ones are a value like any other.
mod integers {
    use super::*;
    integers!(u8 u16 u32 u64 usize i8 i16 i32 i64 isize);
}

#[test]
fn floats_load_and_store_bit_for_bit() {
    signal::install().unwrap();
    let p = good(PAGE);
    // SAFETY: inside of a page that this test has made and only it knows.
    unsafe {
        for bits in [0, 0x8000_0000_0000_0000, u64::MAX, 0x7ff0_0000_0000_0001] {
            raw::store(p.cast::<f64>(), f64::from_bits(bits)).unwrap();
            assert_eq!(raw::load(p.cast::<f64>()).unwrap().to_bits(), bits);
            let half = u32::try_from(bits >> 32).unwrap();
            raw::store(p.cast::<f32>(), f32::from_bits(half)).unwrap();
            assert_eq!(raw::load(p.cast::<f32>()).unwrap().to_bits(), half);
        }
    }
    needs_recovery!();
    // SAFETY: the same; the accesses fault, and recover.
    unsafe {
        assert!(raw::load(segv(PAGE).cast::<f32>()).is_err());
        assert!(raw::load(bus(PAGE).cast::<f64>()).is_err());
    }
}

/// The bytes before the page's edge that copies are made in, and some more that they must leave alone.
const NEAR: usize = 4096;
const SEEN: usize = NEAR + 64;

/// What is copied: made once, since that takes longer than the copies on a slow machine.
static PATTERN: LazyLock<Vec<u8>> =
    LazyLock::new(|| (0..3 * NEAR).map(|i| u8::try_from(i % 251).unwrap() + 1).collect());

/// Copies of every kind that reach the page's edge after `edge` bytes, with the other side `misaligned`.
fn copy_stops_at(edge: usize, len: usize, misaligned: usize, medium: Medium, region: impl Fn() -> *mut u8) {
    let buffer = &PATTERN[..len + misaligned];
    let page = region();
    // SAFETY: inside of the page, here and below.
    let (start, seen) = unsafe { (page.add(PAGE - edge), page.add(PAGE - SEEN)) };
    // SAFETY: the first page is accessible, and only this test knows it.
    let before = unsafe { std::slice::from_raw_parts(seen, SEEN) }.to_vec();
    // SAFETY: `buffer` has `len` bytes from there on; what is beyond the page faults, and the copy recovers.
    let done = unsafe { raw::copy_in(start, buffer[misaligned..].as_ptr(), len, medium) };
    assert_eq!(done, edge.min(len), "copy_in");
    // SAFETY: as for `before`.
    let after = unsafe { std::slice::from_raw_parts(seen, SEEN) };
    assert!(after[SEEN - edge..][..done] == buffer[misaligned..][..done], "copied wrongly into it");
    assert!(after[..SEEN - edge] == before[..SEEN - edge], "wrote before it");
    assert!(after[SEEN - edge + done..] == before[SEEN - edge + done..], "wrote beyond it");

    let mut out = vec![0xee; len + misaligned + 64];
    // SAFETY: as for `copy_in`; `out` has `len` bytes from there on.
    let done = unsafe { raw::copy_out(out[misaligned..].as_mut_ptr(), start, len, medium) };
    assert_eq!(done, edge.min(len), "copy_out");
    assert!(out[misaligned..][..done] == after[SEEN - edge..][..done], "copied wrongly out of it");
    assert!(out[..misaligned] == [0xee; 64][..misaligned], "wrote before");
    assert!(out[misaligned + done..] == vec![0xee; len + 64 - done], "wrote beyond");

    // SAFETY: as for `copy_in`.
    let done = unsafe { raw::fill(start, 0x77, len, medium) };
    assert_eq!(done, edge.min(len), "fill");
    // SAFETY: as for `before`.
    let after = unsafe { std::slice::from_raw_parts(seen, SEEN) };
    assert!(after[SEEN - edge..][..done] == vec![0x77; done]);
    // SAFETY: the pages that `region` has made; nothing uses them any more.
    unsafe { libc::munmap(page.cast(), 3 * PAGE) };
}

/// Memory comes first, as a mapping of it has it on this machine.
fn media() -> [Medium; 3] {
    [Medium::of(false), Medium::Memory, Medium::Device]
}

/// The same at every alignment of both sides modulo 64 (some, under Miri), for each medium.
fn copies_stop_at(edge: usize, len: usize, region: impl Fn() -> *mut u8) {
    for medium in media() {
        for misaligned in (0..64).step_by(if cfg!(miri) { 29 } else { 1 }) {
            copy_stops_at(edge, len, misaligned, medium, &region);
        }
    }
}

/// Three pages of which the first can be accessed.
fn protected() -> *mut u8 {
    let p = good(3 * PAGE);
    // SAFETY: pages made here, which only this test knows.
    assert_eq!(unsafe { libc::mprotect(p.add(PAGE).cast(), 2 * PAGE, libc::PROT_NONE) }, 0);
    p
}

#[test]
fn a_whole_copy_is_whole() {
    signal::install().unwrap();
    let few = if cfg!(miri) { 17 } else { 1 };
    let long = [191, 192, 193, 255, 256, 257, 511, 512, 575, 1023, 1024, 1055, 2222, 2559, 2560, NEAR];
    for len in (0..=130).chain(long).step_by(few) {
        copies_stop_at(len, len, || good(3 * PAGE));
    }
}

#[test]
fn a_copy_that_meets_revoked_memory_says_how_far_it_came() {
    needs_recovery!();
    for edge in (0..=200).chain([1000, 1024, 1055, 1056, 2047, 2048, 4000, NEAR]) {
        copies_stop_at(edge, edge + 1, || bus_after(PAGE, 3 * PAGE));
        copies_stop_at(edge, edge + 200, protected);
    }
}

/// At every position of a page of 4 KiB, for a copy that ends right there and for one that is long enough for each of the ways.
#[test]
fn a_fault_anywhere_in_a_copy_is_found_to_the_byte() {
    needs_recovery!();
    for edge in 0..=NEAR {
        for medium in media() {
            copy_stops_at(edge, edge + 1, edge * 7 % 64, medium, protected);
            copy_stops_at(edge, NEAR + edge, edge * 13 % 64, medium, || bus_after(PAGE, 3 * PAGE));
        }
    }
}

/// At every position of copies of each of the lengths around which another way begins.
#[test]
fn a_fault_anywhere_in_a_short_copy_is_found_to_the_byte() {
    needs_recovery!();
    let medium = Medium::of(false);
    for len in [1, 63, 64, 65, 127, 128, 129, 192, 255, 256, 257, 384, 511, 512, 513, 600, 640, 641, 700, 769] {
        for edge in 0..=len {
            copy_stops_at(edge, len, edge * 7 % 64, medium, protected);
        }
    }
}

/// Whatever follows a fault may find all of the memory revoked: so what was stored before it has to be in the count. These go
/// across a page's edge, as no copy does, so that each store in turn is the first to fault.
#[test]
fn a_copy_into_memory_counts_all_that_it_stored_before_a_fault() {
    needs_recovery!();
    let is_quick = Medium::of(false) == Medium::Quick;
    let mut skipped = false;
    for edge in (0..=200).chain([256, 300, 511, 600, 1024, 3000, PAGE]) {
        for (more, quick) in [1, 36, 64, 100, 200, 300, 2560].into_iter().flat_map(|more| [(more, false), (more, true)])
        {
            let (page, buffer) = (protected(), vec![0x77; edge + more]);
            let (dst, src, len) = (page.wrapping_add(PAGE - edge), buffer.as_ptr(), buffer.len());
            let done = match quick {
                // SAFETY: inside of the first page, which only this test knows; beyond it the copy faults, and recovers.
                true => (is_quick && Cpu::QUICK.contains(&len)).then(|| unsafe { Cpu::quick_in(dst, src, len) }),
                // SAFETY: the same.
                false => unsafe { Cpu::memory_in(dst, src, len) },
            };
            let Some(done) = done else {
                skipped |= !is_quick;
                continue;
            };
            // SAFETY: as above; the first page is accessible.
            let after = unsafe { std::slice::from_raw_parts(page, PAGE) };
            let stored = after.iter().filter(|byte| **byte == 0x77).count();
            assert_eq!(stored, done, "{edge} bytes before the edge, {more} beyond it");
            // SAFETY: the pages that `protected` has made; nothing uses them any more.
            unsafe { libc::munmap(page.cast(), 3 * PAGE) };
        }
    }
    if skipped {
        eprintln!("SKIP: this processor has no copies of its own for memory of some lengths");
    }
}

/// Only a copy by a few instructions is gone on with: any other has been as far as it came, and touches nothing again that may be
/// a device's.
#[test]
fn the_end_of_a_copy_goes_on_only_where_its_begin_has_left_that() {
    needs_recovery!();
    for medium in media() {
        for len in [1, 63, 64, 65, 128, 256, 257, 512, 4000] {
            let (page, buffer, done) = (good(PAGE), vec![0x77; len], len / 2);
            let mut out = vec![0xee; len];
            // SAFETY: a page made here, which only this test knows; the buffer has `len` bytes, of which `done` are fewer.
            let into = unsafe { raw::end_in(page, buffer.as_ptr(), len, medium, done) };
            // SAFETY: as above.
            let stored = unsafe { std::slice::from_raw_parts(page, len) }.iter().filter(|byte| **byte == 0x77).count();
            // SAFETY: as above.
            let out_of = unsafe { raw::end_out(out.as_mut_ptr(), page, len, medium, done) };
            let loaded = out.iter().filter(|byte| **byte != 0xee).count();
            let goes_on = medium == Medium::Quick && Cpu::QUICKEST.contains(&len);
            assert_eq!([into, out_of], [if goes_on { len } else { done }; 2], "{medium:?}, {len} bytes");
            assert_eq!([stored, loaded], [if goes_on { len - done } else { 0 }; 2], "{medium:?}, {len} bytes");
            // SAFETY: the page; nothing uses it any more.
            unsafe { libc::munmap(page.cast(), PAGE) };
        }
    }
}

#[test]
fn many_threads_may_fault_at_once() {
    needs_recovery!();
    let (bus, segv, fine) = (bus(PAGE) as usize, segv(PAGE) as usize, good(PAGE) as usize);
    std::thread::scope(|scope| {
        for _ in 0..64 {
            scope.spawn(move || {
                for i in 0..500u32 {
                    // SAFETY: memory made above, which stays mapped; the access faults, and recovers.
                    assert_eq!(unsafe { raw::load(bus as *const u32) }, Err(Faulted));
                    // SAFETY: the same.
                    assert_eq!(unsafe { raw::store(segv as *mut u64, 1) }, Err(Faulted));
                    // SAFETY: the same, and accessible.
                    assert_eq!(unsafe { raw::load(fine as *const u64) }, Ok(0), "round {i}");
                }
            });
        }
    });
}

#[test]
fn errno_is_kept() {
    needs_recovery!();
    let p = bus(PAGE);
    nix::errno::Errno::set_raw(4711);
    // SAFETY: memory made here, whose access faults and recovers.
    assert_eq!(unsafe { raw::load(p) }, Err(Faulted));
    assert_eq!(nix::errno::Errno::last_raw(), 4711);
}
