//! The unrolled loops of the bulk copies, with pairs of vector registers.
#![expect(unsafe_code, reason = "inline assembly")]
// UNSAFETY: the instructions that `raw`'s contract is about.

use super::Cpu;
use crate::raw::contract::Rounds;
use crate::raw::table::text::{rounds_in, rounds_out};

impl Rounds for Cpu {
    #[inline]
    unsafe fn rounds_out(dst: *mut u8, src: *const u8, len: usize) -> usize {
        rounds_out!(
            dst, src, len,
            [
                "2:",
                "20: ldp q0, q1, [{src}]",
                "21: ldp q2, q3, [{src}, #32]",
                "22: ldp q4, q5, [{src}, #64]",
                "23: ldp q6, q7, [{src}, #96]",
                "stp q0, q1, [{dst}]",
                "stp q2, q3, [{dst}, #32]",
                "stp q4, q5, [{dst}, #64]",
                "stp q6, q7, [{dst}, #96]",
                "add {dst}, {dst}, #128",
                "add {src}, {src}, #128",
                "cmp {src}, {end}",
                "b.ne 2b",
                "3:",
            ],
            ["20b", "21b", "22b", "23b"],
            out("v0") _, out("v1") _, out("v2") _, out("v3") _,
            out("v4") _, out("v5") _, out("v6") _, out("v7") _,
        )
    }

    #[inline]
    unsafe fn rounds_in(dst: *mut u8, src: *const u8, len: usize) -> usize {
        rounds_in!(
            dst, src, len,
            [
                "2:",
                "ldp q0, q1, [{src}]",
                "ldp q2, q3, [{src}, #32]",
                "ldp q4, q5, [{src}, #64]",
                "ldp q6, q7, [{src}, #96]",
                "20: stp q0, q1, [{dst}]",
                "21: stp q2, q3, [{dst}, #32]",
                "22: stp q4, q5, [{dst}, #64]",
                "23: stp q6, q7, [{dst}, #96]",
                "add {src}, {src}, #128",
                "add {dst}, {dst}, #128",
                "cmp {dst}, {end}",
                "b.ne 2b",
                "3:",
            ],
            ["20b" after "0", "21b" after "32", "22b" after "64", "23b" after "96"],
            out("v0") _, out("v1") _, out("v2") _, out("v3") _,
            out("v4") _, out("v5") _, out("v6") _, out("v7") _,
        )
    }
}
