//! The bulk copies: by AVX on every machine that has it; to and from memory, on Intel's that can, by AVX-512 and
//! `rep movsb`.
//!
//! `rep movsb` costs some 10 ns and more before the first byte, and nothing copies faster once the data leaves the first-level
//! cache. A device's registers would get it byte by byte, and masked stores in pieces, and vectors that overlap would store
//! some bytes twice, so all of these are for memory only. AMD's machines copy by AVX as fast as their `memcpy` does, and were
//! not seen with the others. `benches/access` has many sizes beside `memcpy`.
#![expect(unsafe_code, reason = "inline assembly")]
// UNSAFETY: the instructions that `raw`'s contract is about.

use super::Cpu;
use crate::raw::contract::Rounds;
use avx::{avx_in, avx_out};
use core::ops::Range;
use machine::{has_avx, has_masks, has_string};
use string::{string_in, string_out};
use vectors::{vectors_in, vectors_out};

mod avx;
mod machine;
mod string;
mod vectors;

/// From this length on `rep movsb` is faster than a loop of AVX, where it is fast at all.
const STRING_FROM: usize = 2560;

impl Rounds for Cpu {
    #[inline]
    unsafe fn rounds_out(dst: *mut u8, src: *const u8, len: usize) -> usize {
        if has_avx() {
            // SAFETY: the caller's contract, and the feature is there.
            unsafe { avx_out(dst, src, len) }
        } else {
            0
        }
    }

    #[inline]
    unsafe fn rounds_in(dst: *mut u8, src: *const u8, len: usize) -> usize {
        if has_avx() {
            // SAFETY: the caller's contract, and the feature is there.
            unsafe { avx_in(dst, src, len) }
        } else {
            0
        }
    }

    const QUICK: Range<usize> = vectors::QUICK;
    const QUICKEST: Range<usize> = vectors::QUICKEST;

    fn is_quick() -> bool {
        has_masks()
    }

    #[inline(always)]
    unsafe fn quick_out(dst: *mut u8, src: *const u8, len: usize) -> usize {
        // SAFETY: the caller's contract.
        unsafe { vectors_out(dst, src, len) }
    }

    #[inline(always)]
    unsafe fn quick_in(dst: *mut u8, src: *const u8, len: usize) -> usize {
        // SAFETY: the caller's contract.
        unsafe { vectors_in(dst, src, len) }
    }

    #[inline(always)]
    unsafe fn memory_out(dst: *mut u8, src: *const u8, len: usize) -> Option<usize> {
        // SAFETY: the caller's contract.
        (len >= STRING_FROM && has_string()).then(|| unsafe { string_out(dst, src, len) })
    }

    #[inline(always)]
    unsafe fn memory_in(dst: *mut u8, src: *const u8, len: usize) -> Option<usize> {
        // SAFETY: the caller's contract.
        (len >= STRING_FROM && has_string()).then(|| unsafe { string_in(dst, src, len) })
    }
}
