//! What a device answers by code of its own.

use crate::users::{Theirs, guarded};
use std::ops::Range;

/// Registers without memory: the implementation emulates them. In a [`Bar`](super::Bar) the BAR's state gates them; as I/O
/// ports of a [`PciDevice`](crate::pci::PciDevice) nothing does.
///
/// ```
/// use revocable_mmio::bar::{Bar, DeviceIo};
/// use std::sync::Arc;
/// use std::sync::atomic::{AtomicU8, Ordering};
///
/// /// A register of one byte.
/// struct Scratch(AtomicU8);
///
/// impl DeviceIo for Scratch {
///     fn read(&self, _offset: u64, into: &mut [u8]) {
///         into.fill(self.0.load(Ordering::Relaxed));
///     }
///     fn write(&self, _offset: u64, bytes: &[u8]) {
///         self.0.store(bytes[0], Ordering::Relaxed);
///     }
/// }
///
/// let scratch = Arc::new(Scratch(AtomicU8::new(0)));
/// let bar = Bar::builder(16).rest(Arc::clone(&scratch) as _).build()?;
/// bar.areas().write(3, &[7])?;
/// bar.disable()?;
/// assert!(bar.areas().write(3, &[8]).is_err()); // the device hears nothing of it
/// let mut value = [0];
/// scratch.read(3, &mut value);
/// scratch.write(3, &[9]); // the device's own doing depends on no state
/// assert_eq!(value, [7]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// It is called by the thread that reads or writes, without any lock of the crate, and may change the device's state. A read
/// that panics reads all-ones, and a write that panics counts as made. So a call that began before a revocation may still be
/// running when that has returned: what it does is the device's own doing, as of its owner's view.
pub trait DeviceIo: Send + Sync {
    /// A read of 1, 2 or 4 bytes, or of 8 for a caller that asks for 8 at an aligned offset. `offset` is in the BAR.
    fn read(&self, offset: u64, into: &mut [u8]);
    /// A write of as many bytes.
    fn write(&self, offset: u64, bytes: &[u8]);
}

/// The widest access, in bytes.
const WIDEST: u64 = 8;

/// Bytes of a BAR that the device's code answers, whatever area has them.
pub(super) struct Trap {
    pub(super) range: Range<u64>,
    pub(super) io: Theirs<dyn DeviceIo>,
}

/// A read, which cannot fail.
pub(crate) fn read(io: &Theirs<dyn DeviceIo>, offset: u64, into: &mut [u8]) {
    if guarded(|| io.read(offset, into)).is_none() {
        into.fill(0xff);
    }
}

/// A write, which cannot fail.
pub(crate) fn write(io: &Theirs<dyn DeviceIo>, offset: u64, bytes: &[u8]) {
    let _ = guarded(|| io.write(offset, bytes));
}

/// The widest access at `offset` that ends before `end`, is aligned, and has at most `left` bytes.
pub(crate) fn width(offset: u64, end: u64, left: usize) -> usize {
    let room = (end - offset).min(left as u64);
    let wide = |width: &u64| *width <= room && offset % width == 0;
    [WIDEST, 4, 2].into_iter().find(wide).map_or(1, |width| usize::try_from(width).unwrap_or(1))
}
