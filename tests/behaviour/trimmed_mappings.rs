//! Page tables that were moved aside are freed in the background, which has no visible effect.
#![expect(unsafe_code, reason = "looks whether an address is mapped")]

use crate::support::{self, child};
use nix::libc;
use revocable_mmio::{MapOptions, Region, Strategy};

fn is_mapped(address: usize) -> bool {
    let mut resident = 0u8;
    // SAFETY: changes nothing but the byte.
    unsafe { libc::mincore(std::ptr::without_provenance_mut(address), 1, &raw mut resident) == 0 }
}

#[test]
fn a_dropped_mapping_is_unmapped_also_while_it_is_being_trimmed() {
    support::start();
    child::alone(|| {
        const LEN: usize = 128 << 20;
        let region = Region::builder(LEN).strategy(Strategy::Detach).trim_detached().build().expect("Detach is there");
        for round in 0..10 {
            let mapping = region.map(MapOptions::new()).expect("it maps");
            mapping.fill(0, 1, LEN).expect("enabled");
            let address = mapping.as_ptr().addr();
            region.disable().expect("nothing is in the way");
            for _ in 0..round {
                std::thread::yield_now();
            }
            drop(mapping);
            assert!(!is_mapped(address), "round {round}");
            region.enable().expect("comes back");
        }
    })
    .well();
}
