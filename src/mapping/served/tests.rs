use super::*;
use crate::mapping::MapOptions;
use crate::monitor::Served as _;
use crate::region::Region;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// Whoever has a region's file (`establish`) may wait for its list of mappings, and who has that (`drop`) for the
/// monitor's table, which the monitor holds while it answers.
#[test]
fn the_monitor_answers_a_late_fault_while_others_hold_the_regions_locks() {
    for strategy in [Strategy::Detach, Strategy::Replace] {
        let Ok(region) = Region::builder(1 << 20).strategy(strategy).build() else {
            println!("SKIP: {strategy} is not possible");
            continue;
        };
        let mapping = region.map(MapOptions::new()).expect("it maps");
        let (file, list) = (region.shared.file.lock(), region.shared.mappings.lock());
        let served = Arc::clone(&mapping.served);
        let (tell, told) = mpsc::channel();
        // Not joined, should it wait.
        thread::spawn(move || {
            served.serve(FaultMessage { addr: served.view.range.addr, tid: 0, write: false });
            tell.send(())
        });
        let answered = told.recv_timeout(Duration::from_secs(20));
        drop((list, file));
        answered.unwrap_or_else(|_| panic!("{strategy}: the monitor waits for a lock"));
    }
}
