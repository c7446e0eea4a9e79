//! A region that is dropped takes its memory with it: at once, also while its last fault is still being answered.

use revocable_mmio::{AccessError, MapOptions, Region, Strategy};

#[test]
fn nothing_is_reachable_once_the_region_is_dropped_right_after_a_fault() {
    for _ in 0..300 {
        let built = Region::builder(1 << 16).strategy(Strategy::Zap).build();
        let region = match built {
            Ok(region) => region,
            Err(e) => {
                println!("SKIP: no Zap: {e}");
                assert!(!std::env::var("REVOCABLE_CI").is_ok_and(|v| v == "1"), "everything must run here: {e}");
                return;
            }
        };
        let mapping = region.map(MapOptions::new()).expect("a mapping");
        // The monitor has answered, and holds the read side of the memory lock for a moment longer.
        assert_eq!(mapping.read::<u64>(0), Ok(0));
        drop(region);
        assert_eq!(mapping.read::<u64>(0), Err(AccessError::Gone { offset: 0 }));
    }
}
