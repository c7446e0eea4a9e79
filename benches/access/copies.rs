//! Copies of many sizes.
#![expect(unsafe_code, reason = "copies to compare with")]

use crate::support::raw::PAGE;
use crate::support::{Contest, Samples, pick};
use crate::{PAUSE, STAMP, TURN, stamped};

/// As `std::hint::black_box`, but in a register: to store and load a word may take as long as a small copy.
fn unknown(mut word: usize) -> usize {
    // SAFETY: no instruction.
    unsafe { std::arch::asm!("/* {0} */", inout(reg) word, options(nostack, preserves_flags)) };
    word
}

fn hidden(buffer: &[u8]) -> &[u8] {
    // SAFETY: the same slice.
    unsafe { std::slice::from_raw_parts(buffer.as_ptr(), unknown(buffer.len())) }
}

fn hidden_mut(buffer: &mut [u8]) -> &mut [u8] {
    // SAFETY: the same slice.
    unsafe { std::slice::from_raw_parts_mut(buffer.as_mut_ptr(), unknown(buffer.len())) }
}

/// What is copied: sizes, and whether both sides are aligned like a page or neither is.
pub(crate) fn copied() -> impl Iterator<Item = (&'static str, usize, &'static str)> {
    const SIZES: [(&str, usize); 9] = [
        ("64", 64),
        ("256", 256),
        ("512", 512),
        ("1k", 1 << 10),
        ("4k", 4 << 10),
        ("16k", 16 << 10),
        ("64k", 64 << 10),
        ("1m", 1 << 20),
        ("16m", 16 << 20),
    ];
    SIZES.into_iter().flat_map(|(size, len)| [(size, len, ""), (size, len, "_unaligned")])
}

/// Beside `memcpy`, out of a mapping and into it. The place in the mapping and the length are unknown to the compiler on
/// both sides.
pub(crate) fn measure(samples: &mut Samples) {
    let (_region, mapping) = stamped();
    for (size, len, shape) in copied() {
        // Unlike each other too, so that no way of copying has both sides aligned after some bytes.
        let (ours, theirs) = if shape.is_empty() { (0, 0) } else { (13, 24 + PAGE / 2) };
        let at = mapping.as_ptr().wrapping_add(ours);
        // One buffer for both sides, because its place in memory matters more than the code.
        let mut memory = vec![0_u8; len + 2 * PAGE];
        let skip = memory.as_ptr().align_offset(PAGE) + theirs;
        let buffer = std::cell::RefCell::new(&mut memory[skip..][..len]);
        let mut contest = Contest::new("copy", PAUSE);
        contest.many(&format!("memcpy_out_{size}{shape}"), TURN, |n| {
            let buffer = &mut **buffer.borrow_mut();
            for _ in 0..n {
                let (at, to) = (at.wrapping_add(unknown(0)), hidden_mut(buffer));
                // SAFETY: inside the mapping; the buffer is as long.
                unsafe { std::ptr::copy_nonoverlapping(at, to.as_mut_ptr(), to.len()) };
            }
        });
        contest.many(&format!("copy_out_{size}{shape}"), TURN, |n| {
            let buffer = &mut **buffer.borrow_mut();
            for _ in 0..n {
                mapping.read_slice(unknown(ours), hidden_mut(buffer)).expect("an enabled region");
            }
        });
        contest.many(&format!("memcpy_in_{size}{shape}"), TURN, |n| {
            let buffer = &**buffer.borrow();
            for _ in 0..n {
                let (at, from) = (at.wrapping_add(unknown(0)), hidden(buffer));
                // SAFETY: inside the mapping, writable; the buffer is as long.
                unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), at, from.len()) };
            }
        });
        contest.many(&format!("copy_in_{size}{shape}"), TURN, |n| {
            let buffer = &**buffer.borrow();
            for _ in 0..n {
                mapping.write_slice(unknown(ours), hidden(buffer)).expect("an enabled region");
            }
        });
        contest.run(pick(200, 20), samples);
        drop(contest);
        let stamp = STAMP.to_ne_bytes();
        assert!(buffer.borrow().iter().enumerate().all(|(i, byte)| *byte == stamp[(i + ours) % 8]), "copied as it was");
    }
}
