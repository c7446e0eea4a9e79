//! Huge pages: MADV_COLLAPSE and khugepaged put page-table entries in place with nobody asking for them.

use super::addr;
use crate::support;
use crate::support::matrix::STRATEGIES;
use crate::support::raw::{self, Hit};
use revocable_mmio::{MapOptions, OnDisabled, Region};

#[test]
fn collapsing_into_huge_pages_opens_nothing() {
    support::start();
    const LEN: usize = 4 << 20;
    const MADV_COLLAPSE: i32 = 25;
    for strategy in STRATEGIES {
        for policy in [OnDisabled::Sigbus, OnDisabled::Block] {
            let Ok(region) = Region::builder(LEN).strategy(strategy).build() else { continue };
            let Ok(mapping) = region.map(MapOptions::new().on_disabled(policy)) else { continue };
            let base = addr(&mapping);
            region.owner().fill(0, 0xa5, LEN).expect("the owner writes");
            raw::load64(base).expect("enabled");
            region.disable().expect("it revokes");
            let collapsed = raw::advise(base, LEN, MADV_COLLAPSE);
            assert!(collapsed.is_err(), "{strategy} {policy:?}: a revoked mapping was collapsed");
            if policy == OnDisabled::Sigbus {
                assert_eq!(raw::load64(base), Err(Hit::bus(base)), "{strategy}");
            } else {
                let resident = support::read_text("/proc/self/smaps");
                let ours = resident.split(&format!("{base:x}-")).nth(1).unwrap_or("");
                let rss = ours.lines().find(|line| line.starts_with("Rss:")).unwrap_or("");
                assert!(rss.contains(" 0 kB"), "{strategy} {policy:?}: pages are mapped: {rss}");
            }
            region.enable().expect("it comes back");
            assert_eq!(raw::load8(base), Ok(0xa5), "{strategy} {policy:?}");
        }
    }
}
