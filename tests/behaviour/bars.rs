//! A BAR of areas that come and go: what answers where, one state, one list of memslots.

mod answers;
mod changes;
mod model;
mod slots;

use revocable_mmio::Region;
use revocable_mmio::RegionBuilder;
use revocable_mmio::bar::{Areas, Bar, BarBuilder, DeviceIo};
use revocable_mmio::memslot::{Memslots, Retention};
use std::sync::{Arc, Mutex};

const PAGE: u64 = 0x1000;
const LEN: usize = 0x4000;
const SIZE: u64 = 0x10_0000;

fn memory() -> RegionBuilder {
    Region::builder(LEN)
}

/// An offset as errors have it.
fn offset(at: u64) -> usize {
    usize::try_from(at).expect("small")
}

/// A BAR whose memslots are seen.
fn in_map(retention: Retention) -> (BarBuilder, Arc<crate::support::memory_map::Map>) {
    let map = Arc::new(crate::support::memory_map::Map::default());
    (Bar::builder(SIZE).memslots(&Memslots::new(Arc::clone(&map)), 8..12, retention), map)
}

fn byte(areas: &Areas, at: u64) -> Result<u8, revocable_mmio::AccessError> {
    let mut value = [0];
    areas.read(at, &mut value).map(|()| value[0])
}

/// Registers that read as their offset and keep what is written.
#[derive(Default)]
struct Registers {
    written: Mutex<Vec<(u64, Vec<u8>)>>,
    read: Mutex<Vec<(u64, usize)>>,
}

impl DeviceIo for Registers {
    fn read(&self, offset: u64, into: &mut [u8]) {
        self.read.lock().expect("no panic").push((offset, into.len()));
        into.fill(u8::try_from(offset & 0x7f).expect("seven bits"));
    }

    fn write(&self, offset: u64, bytes: &[u8]) {
        self.written.lock().expect("no panic").push((offset, bytes.to_vec()));
    }
}
