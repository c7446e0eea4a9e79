//! Copies of many sizes.
#![expect(unsafe_code, reason = "copies to compare with")]

use crate::support::raw::PAGE;
use crate::support::{Contest, Samples, pick};
use crate::{PAUSE, STAMP, TURN, stamped};
use std::hint::black_box;

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

/// Beside `memcpy`, out of a mapping and into it. The black boxes hold the same on both sides: a place in the mapping, and a slice.
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
                // SAFETY: inside the mapping; the buffer is as long.
                unsafe { std::ptr::copy_nonoverlapping(black_box(at), buffer.as_mut_ptr(), buffer.len()) };
                black_box(&mut *buffer);
            }
        });
        contest.many(&format!("copy_out_{size}{shape}"), TURN, |n| {
            let buffer = &mut **buffer.borrow_mut();
            for _ in 0..n {
                mapping.read_slice(black_box(ours), buffer).expect("an enabled region");
                black_box(&mut *buffer);
            }
        });
        contest.many(&format!("memcpy_in_{size}{shape}"), TURN, |n| {
            let buffer = &**buffer.borrow();
            for _ in 0..n {
                let buffer = black_box(buffer);
                // SAFETY: inside the mapping, writable; the buffer is as long.
                unsafe { std::ptr::copy_nonoverlapping(buffer.as_ptr(), black_box(at), buffer.len()) };
            }
        });
        contest.many(&format!("copy_in_{size}{shape}"), TURN, |n| {
            let buffer = &**buffer.borrow();
            for _ in 0..n {
                mapping.write_slice(black_box(ours), black_box(buffer)).expect("an enabled region");
            }
        });
        contest.run(pick(200, 20), samples);
        drop(contest);
        let stamp = STAMP.to_ne_bytes();
        assert!(buffer.borrow().iter().enumerate().all(|(i, byte)| *byte == stamp[(i + ours) % 8]), "copied as it was");
    }
}
