//! Which instructions copy to and from a device: seen where they fault. Registers would get `rep movsb` byte by byte, and
//! some bytes twice by the vectors of AVX-512, which overlap.

use super::handlers::*;
use crate::raw::test_memory::{PAGE, bus_after, good};
use crate::raw::{self, Medium, signal};
use nix::libc::{self, c_int, c_void, siginfo_t};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

/// The kinds of instruction that have faulted since this was last taken.
static KINDS: AtomicU64 = AtomicU64::new(0);

/// `rep movsb`.
const STRING: u64 = 1;
/// An instruction of AVX-512.
const WIDE: u64 = 2;
const OTHER: u64 = 4;

fn kind_of(code: [u8; 6]) -> u64 {
    match code {
        [0xf3, 0xa4, ..] => STRING,
        // EVEX.
        [0x62, ..] => WIDE,
        _ => OTHER,
    }
}

extern "C" fn looks(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel's context of this signal.
    let context_of = unsafe { &*context.cast::<libc::ucontext_t>() };
    let at = context_of.uc_mcontext.gregs[libc::REG_RIP.unsigned_abs() as usize];
    let at = std::ptr::with_exposed_provenance::<[u8; 6]>(usize::from_ne_bytes(at.to_ne_bytes()));
    // SAFETY: the instruction that has faulted; the function that it is in goes on for longer than this.
    let code = unsafe { at.read_unaligned() };
    KINDS.fetch_or(kind_of(code), SeqCst);
    vmm_handler(signal, info, context);
}

/// Copies of all lengths, both ways, and fills, that fault at their first byte or further on. Returns the instructions.
fn copies(medium: Medium) -> u64 {
    KINDS.store(0, SeqCst);
    let buffer = good(2 * PAGE);
    let page = bus_after(PAGE, 3 * PAGE);
    for len in [1, 8, 31, 64, 127, 128, 300, 1000, 2559, 2560, 4096, 2 * PAGE - 64] {
        for before in [0, 1, 8, 63, 200, 2000, 5000].into_iter().filter(|before| *before < len) {
            for misaligned in [0, 3] {
                let at = page.wrapping_add(PAGE - before);
                let other = buffer.wrapping_add(misaligned);
                // SAFETY: pages of the scenario's, which only this thread knows; what faults recovers. The buffer has as much.
                let loaded = unsafe { raw::copy_in(at, other, len, medium) };
                // SAFETY: as above.
                let stored = unsafe { raw::copy_out(other, at, len, medium) };
                // SAFETY: as above.
                let filled = unsafe { raw::fill(at, 7, len, medium) };
                assert_eq!([loaded, stored, filled], [before; 3], "{len} bytes");
            }
        }
    }
    KINDS.load(SeqCst)
}

pub(super) fn copies_of_devices() {
    signal::own_handlers().unwrap();
    signal::install().unwrap();
    for signal in [libc::SIGSEGV, libc::SIGBUS] {
        set_handler(signal, looks as extern "C" fn(_, _, _) as usize, libc::SA_SIGINFO);
    }
    assert_eq!(copies(Medium::Device), OTHER, "1: rep movsb, 2: a vector of AVX-512");
    // Where the processor has them, memory gets them: so they would have been seen.
    println!("memory gets {}", copies(Medium::of(false)));
}
