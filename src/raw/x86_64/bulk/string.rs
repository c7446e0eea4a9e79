//! `rep movsb`: a whole copy in one instruction, which says how far it came.
#![expect(unsafe_code, reason = "inline assembly")]
// UNSAFETY: the instructions that `raw`'s contract is about.

use crate::raw::table::text::recovery;

/// The copy `$name`, whose region's side is the address in register `$side`.
macro_rules! string {
    ($name:ident, $side:literal) => {
        /// Returns how many bytes were copied.
        ///
        /// # Safety
        ///
        /// As the functions of `Rounds` for memory.
        pub(super) unsafe fn $name(dst: *mut u8, src: *const u8, len: usize) -> usize {
            let left: usize;
            // SAFETY: within the caller's contract. A fault leaves in rcx how many bytes are still to be moved.
            unsafe {
                core::arch::asm!(
                    "20: rep movsb",
                    "3:",
                    recovery!("20b" => "3b", set "{scratch}" = "0", addr $side + "128"),
                    inout("rdi") dst => _,
                    inout("rsi") src => _,
                    inout("rcx") len => left,
                    scratch = out(reg) _,
                    register = sym crate::raw::table::register,
                    options(nostack, preserves_flags),
                );
            }
            len - left
        }
    };
}

string!(string_out, "rsi");
string!(string_in, "rdi");
