//! The expected content of the region: stamps that the owner changes while the region is disabled, and for each worker
//! cells to which only this worker stores.
//!
//! On each page the stamp is at byte 0, and the cell of worker `w` at byte `64 + 8 * w`.

use revocable_mmio::Region;
use std::sync::atomic::{AtomicU64, Ordering};

/// Stamps that the region holds only while no access may reach it.
const FORBIDDEN: u64 = 0xdead << 48;
/// Stamps that the region holds while it is enabled.
const OPEN: u64 = 0x0be0 << 48;

const FIRST_CELL: usize = 64;
/// Their cells fit the smallest page.
pub(super) const MOST_WORKERS: usize = 320;
const MOST_PAGES: usize = 128;

pub(super) fn is_forbidden(stamp: u64) -> bool {
    stamp >> 48 == FORBIDDEN >> 48
}

/// The cycle of a stamp that accesses may see.
pub(super) fn cycle_of(stamp: u64) -> Option<u64> {
    let cycle = stamp ^ OPEN;
    (cycle >> 48 == 0).then_some(cycle)
}

#[derive(Debug)]
pub(super) struct Ledger {
    pages: usize,
    /// From one page in use to the next, in bytes.
    stride: usize,
    workers: usize,
    /// The last store to each cell that is known to have reached the region, by worker, then page.
    acked: Vec<AtomicU64>,
    /// The bits of its cells to which a worker stores.
    masks: Vec<u64>,
    /// The cycle of the last open stamps.
    opened: AtomicU64,
}

impl Ledger {
    pub(super) fn new(region: &Region, masks: Vec<u64>) -> Self {
        let (workers, all) = (masks.len(), region.len() / region.page_size());
        let pages = all.min(MOST_PAGES);
        let acked = (0..workers * pages).map(|_| AtomicU64::new(0)).collect();
        Self { pages, stride: all / pages * region.page_size(), workers, acked, masks, opened: AtomicU64::new(0) }
    }

    pub(super) fn pages(&self) -> usize {
        self.pages
    }

    pub(super) fn stamp_at(&self, page: usize) -> usize {
        page * self.stride
    }

    pub(super) fn cell_at(&self, worker: usize, page: usize) -> usize {
        page * self.stride + FIRST_CELL + 8 * worker
    }

    pub(super) fn acked(&self, worker: usize, page: usize) -> u64 {
        self.acked[worker * self.pages + page].load(Ordering::Acquire)
    }

    /// Records that store `value` to this cell is known to be in the region.
    pub(super) fn ack(&self, worker: usize, page: usize, value: u64) {
        self.acked[worker * self.pages + page].store(value, Ordering::Release);
    }

    /// Puts the stamp of `cycle` that accesses may see on every page.
    pub(super) fn open(&self, region: &Region, cycle: u64) -> Result<(), String> {
        self.stamp(region, OPEN | cycle)?;
        // SeqCst, like all of the clock: an access that begins later sees these stamps or later ones.
        self.opened.store(cycle, Ordering::SeqCst);
        Ok(())
    }

    /// Puts the stamp of `cycle` that no access may see on every page.
    pub(super) fn forbid(&self, region: &Region, cycle: u64) -> Result<(), String> {
        self.stamp(region, FORBIDDEN | cycle)
    }

    /// The oldest cycle whose stamp an access that begins now may see.
    pub(super) fn opened(&self) -> u64 {
        self.opened.load(Ordering::SeqCst)
    }

    fn stamp(&self, region: &Region, stamp: u64) -> Result<(), String> {
        for page in 0..self.pages {
            region.owner().write(self.stamp_at(page), stamp).map_err(|e| format!("owner's view: {e}"))?;
        }
        Ok(())
    }

    /// All cells. To be called while no store can come in between.
    pub(super) fn cells(&self, region: &Region) -> Result<Vec<u64>, String> {
        let mut cells = Vec::with_capacity(self.workers * self.pages);
        for worker in 0..self.workers {
            for page in 0..self.pages {
                let cell = region.owner().read::<u64>(self.cell_at(worker, page));
                cells.push(cell.map_err(|e| format!("owner's view: {e}"))?);
            }
        }
        Ok(cells)
    }

    /// G2: earlier stores are there. The worker's next store may be there too, not yet acknowledged.
    pub(super) fn check_kept(&self, cells: &[u64]) -> Result<(), String> {
        for worker in 0..self.workers {
            for page in 0..self.pages {
                let (cell, acked) = (cells[worker * self.pages + page], self.acked(worker, page));
                if cell.wrapping_sub(acked) & self.masks[worker] > 1 {
                    return Err(format!(
                        "G2: worker {worker} stored {acked:#x} at {:#x}, the region has {cell:#x}",
                        self.cell_at(worker, page)
                    ));
                }
            }
        }
        Ok(())
    }

    /// G1: no store has reached the region between the two.
    pub(super) fn check_unchanged(&self, before: &[u64], after: &[u64], when: &str) -> Result<(), String> {
        match before.iter().zip(after).position(|(b, a)| b != a) {
            None => Ok(()),
            Some(i) => Err(format!(
                "G1: a store of worker {} reached {:#x} while the region was {when}: {:#x} became {:#x}",
                i / self.pages,
                self.cell_at(i / self.pages, i % self.pages),
                before[i],
                after[i]
            )),
        }
    }
}
