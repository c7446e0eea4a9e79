//! Mappings for the crate's accessors only.

use crate::support;
use revocable_mmio::{AccessError, MapOptions, Region, Strategy, Support};

/// Also where accesses do not recover (`--cfg revocable_portable`). They do not fault there, so no monitor is needed.
#[test]
fn an_accessors_only_mapping_is_read_and_written_on_every_architecture() {
    support::start();
    require!(Support::current().userfaultfd(), "no userfaultfd");
    let region = Region::builder(1 << 20).strategy(Strategy::Zap).build().expect("a region");
    let mapping = region.map(MapOptions::new().accessors_only()).expect("it maps");
    for round in 0..3 {
        mapping.write::<u64>(4096, round).expect("enabled");
        region.disable().expect("nothing is in the way");
        assert_eq!(mapping.read::<u64>(4096), Err(AccessError::Disabled { offset: 4096 }));
        region.enable().expect("comes back");
        assert_eq!(mapping.read::<u64>(4096), Ok(round));
    }
}
