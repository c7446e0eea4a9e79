//! Fault-around: how many pages a fault maps.

use std::sync::atomic::{AtomicUsize, Ordering};

/// How many pages one fault maps (Zap).
///
/// ```
/// use revocable_mmio::{FaultAround, MapOptions, Region, Strategy};
///
/// # if !revocable_mmio::Support::current().userfaultfd() {
/// #     eprintln!("SKIP: no userfaultfd");
/// #     return Ok(());
/// # }
/// let queue = Region::builder(1 << 20).strategy(Strategy::Zap).fault_around(FaultAround::Whole).build()?;
/// queue.owner().fill(0, 0, queue.len())?; // pages that the file has
/// let mapping = queue.map(MapOptions::new())?;
/// mapping.write(0, 1_u8)?;
/// while queue.stats().pages_mapped == 0 {
///     std::thread::yield_now(); // counted after the thread goes on
/// }
/// assert_eq!(queue.stats().pages_mapped, (queue.len() / queue.page_size()) as u64); // by one fault
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum FaultAround {
    /// 64 KiB at first, and twice as much each time a fault follows directly on the last window, up to 16 MiB. A single
    /// access stays cheap, and walking a region costs a third of what the kernel's own minor faults cost. The default.
    #[default]
    Adaptive,
    /// This many pages, in a window of that size around the fault. 1 maps only the page itself.
    Pages(usize),
    /// The whole mapping.
    Whole,
}

/// How many pages a fault maps: see [`FaultAround`].
pub(super) struct Around {
    kind: FaultAround,
    page: usize,
    /// Where the last window ended, and how long it was, in bytes.
    last_end: AtomicUsize,
    last_len: AtomicUsize,
}

const ADAPTIVE_FIRST: usize = 64 << 10;
const ADAPTIVE_MOST: usize = 16 << 20;

impl Around {
    pub(super) fn new(kind: FaultAround, page: usize) -> Self {
        Self { kind, page, last_end: AtomicUsize::new(usize::MAX), last_len: AtomicUsize::new(0) }
    }

    /// The bytes to map for a fault at `first` in a mapping of `len` bytes; contains `first`.
    pub(super) fn window(&self, first: usize, len: usize) -> (usize, usize) {
        match self.kind {
            FaultAround::Whole => (0, len),
            FaultAround::Pages(pages) => {
                let size = pages.max(1).saturating_mul(self.page).min(len);
                let start = first / size * size;
                (start, start.saturating_add(size).min(len))
            }
            FaultAround::Adaptive => {
                // A race between faulting threads costs a smaller window, nothing else.
                let follows = self.last_end.load(Ordering::Relaxed) == first;
                let last = self.last_len.load(Ordering::Relaxed);
                let size = if follows { (2 * last).clamp(ADAPTIVE_FIRST, ADAPTIVE_MOST) } else { ADAPTIVE_FIRST };
                let size = size.max(self.page);
                let start = if follows { first } else { first / size * size };
                let end = start.saturating_add(size).min(len);
                self.last_end.store(end, Ordering::Relaxed);
                self.last_len.store(size, Ordering::Relaxed);
                (start, end)
            }
        }
    }
}
