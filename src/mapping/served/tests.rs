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

/// Accesses of a mapping that needs no answers are tried at once, also after the end of who would have answered; and one
/// that was closed is opened by the first that looks, whatever has become of the userfaultfd.
#[test]
#[expect(unsafe_code, reason = "takes a descriptor away from its owner")]
fn the_end_of_a_monitor_closes_no_mapping_that_the_kernel_serves() {
    use crate::backing::{Backing, OnRevoke};
    use std::fs::{self, File};
    use std::os::fd::AsRawFd;
    let path = std::env::temp_dir().join(format!("revocable-served-{}", std::process::id()));
    for (strategy, is_device) in [(Strategy::Detach, false), (Strategy::Replace, false), (Strategy::Replace, true)] {
        let Ok(monitor) = crate::Monitor::manual() else {
            println!("SKIP: no userfaultfd");
            return;
        };
        let mut builder = Region::builder(1 << 16).strategy(strategy).monitor(monitor.clone());
        if is_device {
            // As good as a device's: a userfaultfd registers no file of a disk.
            let file = File::options().read(true).write(true).create_new(true).open(&path).expect("a file");
            fs::remove_file(&path).expect("it was just made");
            file.set_len(1 << 16).expect("it grows");
            builder = builder.backing(Backing::File { fd: file.into(), offset: 0, device: Some(OnRevoke::Keep) });
        }
        let Ok(region) = builder.build() else {
            println!("SKIP: {strategy} is not possible");
            continue;
        };
        let mapping = region.map(MapOptions::new()).expect("it maps");
        let served = &mapping.served;
        let is_open = || served.load_limit.load(Ordering::Relaxed) == mapping.len();
        for what in ["its end", "its userfaultfd's end"] {
            assert!(monitor::Served::abandon(&**served), "{strategy} {is_device} {what}");
            assert!(is_open(), "{strategy} {is_device}: closed by {what}");
            served.close();
            served.heal();
            assert!(is_open(), "{strategy} {is_device}: not opened again after {what}");
            let other = File::open("/dev/null").expect("there is one");
            // SAFETY: a number that stays its owner's, who finds that it is no userfaultfd.
            let rc = unsafe { nix::libc::dup2(other.as_raw_fd(), monitor.as_fd().as_raw_fd()) };
            assert!(rc >= 0, "dup2");
        }
    }
}
