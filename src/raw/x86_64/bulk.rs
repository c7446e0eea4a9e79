//! The bulk copies: by AVX on every machine that has it; to and from memory, on Intel's that can, by masked moves and
//! `rep movsb`.
//!
//! `rep movsb` costs about 50 ns before the first byte, and nothing copies faster from some thousand bytes on. A device's
//! registers would get it byte by byte, and masked stores in pieces, so both are for memory only. AMD's machines copy by
//! AVX as fast as their `memcpy` does, and were not seen with the others. `benches/access` has all sizes beside `memcpy`.
#![expect(unsafe_code, reason = "inline assembly")]
// UNSAFETY: the instructions that `raw`'s contract is about.

use super::Cpu;
use crate::raw::contract::Rounds;
use avx::{avx_in, avx_out};
use machine::{has_avx, has_masks, has_string};
use masked::{masked_in, masked_out};
use string::{string_in, string_out};

mod avx;
mod machine;
mod masked;
mod string;

/// From this length on `rep movsb` is faster than a loop, where it is fast at all.
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

    #[inline(always)]
    unsafe fn memory_out(dst: *mut u8, src: *const u8, len: usize) -> Option<usize> {
        if len < STRING_FROM {
            // SAFETY: the caller's contract, and the features are there.
            has_masks().then(|| unsafe { masked_out(dst, src, len) })
        } else {
            // SAFETY: the caller's contract.
            has_string().then(|| unsafe { string_out(dst, src, len) })
        }
    }

    #[inline(always)]
    unsafe fn memory_in(dst: *mut u8, src: *const u8, len: usize) -> Option<usize> {
        if len < STRING_FROM {
            // SAFETY: the caller's contract, and the features are there.
            has_masks().then(|| unsafe { masked_in(dst, src, len) })
        } else {
            // SAFETY: the caller's contract.
            has_string().then(|| unsafe { string_in(dst, src, len) })
        }
    }
}
