//! Which pages of a mapping are in the page tables of its process, as /proc/PID/pagemap tells.

use revocable_mmio::Region;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Bit 63 of an entry: the page is present (Documentation/admin-guide/mm/pagemap.rst).
const PRESENT: u64 = 1 << 63;
/// More pages than this are sampled.
const MOST: usize = 4096;

pub(super) struct PageMap {
    file: File,
    /// The mapping's first page, and how many it has.
    first: u64,
    pages: usize,
}

impl PageMap {
    /// Of a mapping of the whole region at address `at` of a process.
    pub(super) fn open(process: u32, at: u64, region: &Region) -> io::Result<Self> {
        let file = File::open(format!("/proc/{process}/pagemap"))?;
        let page = region.page_size();
        Ok(Self { file, first: at / page as u64, pages: region.len() / page })
    }

    /// The mapping in `cells` parts: which share of each is mapped, 0 to 1.
    pub(super) fn present(&self, cells: usize) -> io::Result<Vec<f64>> {
        let Self { file, first, pages } = self;
        let cells = cells.min(*pages).max(1);
        let mut shares = Vec::with_capacity(cells);
        for cell in 0..cells {
            let (from, to) = (cell * pages / cells, (cell + 1) * pages / cells);
            let count = (to - from).min((MOST / cells).max(1));
            let mut entries = vec![0; 8 * count];
            file.read_exact_at(&mut entries, (first + from as u64) * 8)?;
            let present = entries
                .chunks_exact(8)
                .filter(|entry| u64::from_ne_bytes((*entry).try_into().unwrap_or_default()) & PRESENT != 0);
            shares.push(present.count() as f64 / count as f64);
        }
        Ok(shares)
    }
}
