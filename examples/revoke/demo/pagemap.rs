//! Which pages of a mapping are in the page tables, as /proc/self/pagemap tells.

use revocable_mmio::Mapping;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Bit 63 of an entry: the page is present (Documentation/admin-guide/mm/pagemap.rst).
const PRESENT: u64 = 1 << 63;
/// More pages than this are sampled.
const MOST: usize = 4096;

pub(super) struct PageMap {
    file: File,
    page: usize,
}

impl PageMap {
    /// `page`: the size of a page, in bytes.
    pub(super) fn open(page: usize) -> io::Result<Self> {
        Ok(Self { file: File::open("/proc/self/pagemap")?, page })
    }

    /// The mapping in `cells` parts: which share of each is mapped, 0 to 1.
    pub(super) fn present(&self, mapping: &Mapping, cells: usize) -> io::Result<Vec<f64>> {
        let pages = mapping.len() / self.page;
        let cells = cells.min(pages).max(1);
        let first = mapping.as_ptr().addr() / self.page;
        let mut shares = Vec::with_capacity(cells);
        for cell in 0..cells {
            let (from, to) = (cell * pages / cells, (cell + 1) * pages / cells);
            let count = (to - from).min((MOST / cells).max(1));
            let mut entries = vec![0; 8 * count];
            self.file.read_exact_at(&mut entries, (first + from) as u64 * 8)?;
            let present = entries
                .chunks_exact(8)
                .filter(|entry| u64::from_ne_bytes((*entry).try_into().unwrap_or_default()) & PRESENT != 0);
            shares.push(present.count() as f64 / count as f64);
        }
        Ok(shares)
    }
}
