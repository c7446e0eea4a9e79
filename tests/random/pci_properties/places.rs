//! Where the model's BARs are: BAR 0, 32 bits wide, and BAR 2, 64 bits wide.

use revocable_mmio::pci::{AddressMap, BarPlace, Space};
use std::sync::Mutex;

/// A place that a BAR came to (`true`) or left.
pub(super) type Told = (usize, u64, bool);

/// The halves of registers, in this order: BAR 0, BAR 2, its upper half.
const HALVES: [usize; 3] = [0x10, 0x18, 0x1c];

#[derive(Default)]
pub(super) struct Places {
    /// A half as it was last written, if as a whole, and the bytes that were written since.
    halves: [([u8; 4], [bool; 4]); 3],
    now: [Option<u64>; 2],
    told: Vec<Told>,
}

impl Places {
    /// A write of one piece.
    pub(super) fn written(&mut self, at: usize, bytes: &[u8]) {
        for (half, start) in self.halves.iter_mut().zip(HALVES) {
            for (at, byte) in (at..).zip(bytes).filter(|(at, _)| (start..start + 4).contains(at)) {
                half.0[at - start] = *byte;
                half.1[at - start] = true;
            }
            if half.1 == [true; 4] {
                half.1 = [false; 4];
            }
        }
    }

    /// The registers read as these addresses.
    pub(super) fn follow(&mut self, decodes: bool, addresses: [u64; 2]) {
        let ones = |half: usize, flags: u32| u32::from_le_bytes(self.halves[half].0) | flags == u32::MAX;
        let sized = [ones(0, 0xf), ones(1, 0xf) || ones(2, 0)];
        let in_pieces = |half: usize| self.halves[half].1.contains(&true);
        let unsettled = [sized[0] || in_pieces(0), sized[1] || in_pieces(1) || in_pieces(2)];
        let next = [0, 1].map(|bar| match self.now[bar] {
            _ if !decodes => None,
            Some(here) if unsettled[bar] => Some(here),
            _ if sized[bar] || addresses[bar] == 0 => None,
            _ => Some(addresses[bar]),
        });
        let moves = |from: [Option<u64>; 2], to: [Option<u64>; 2], comes: bool| {
            let moved = [0, 1].into_iter().filter(move |bar| from[*bar] != to[*bar]);
            moved.filter_map(move |bar| from[bar].map(|address| (2 * bar, address, comes))).collect::<Vec<_>>()
        };
        let left = moves(self.now, next, false);
        self.told.extend(left.into_iter().rev());
        self.told.extend(moves(next, self.now, true));
        self.now = next;
    }

    /// The places are entered once more, by another device.
    pub(super) fn migrate(&mut self) {
        let places = self.now.iter().enumerate();
        self.told.extend(places.filter_map(|(bar, place)| place.map(|address| (2 * bar, address, true))));
    }

    pub(super) fn now(&self) -> [Option<u64>; 2] {
        self.now
    }

    pub(super) fn told(&mut self) -> Vec<Told> {
        std::mem::take(&mut self.told)
    }
}

/// What the device tells.
#[derive(Default)]
pub(super) struct Followed(Mutex<Vec<Told>>);

impl Followed {
    pub(super) fn told(&self) -> Vec<Told> {
        std::mem::take(&mut *self.0.lock().expect("a list"))
    }

    fn push(&self, place: &BarPlace, comes: bool) {
        let Space::Bar(bar) = place.space else { panic!("{place}: there is no ROM") };
        self.0.lock().expect("a list").push((bar, place.address, comes));
    }
}

impl AddressMap for Followed {
    fn insert(&self, place: &BarPlace) -> std::io::Result<()> {
        self.push(place, true);
        Ok(())
    }

    fn remove(&self, place: &BarPlace) {
        self.push(place, false);
    }
}
