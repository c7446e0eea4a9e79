//! Writes that are begun, and completed later.

use super::*;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use revocable_mmio::CancelToken;
use revocable_mmio::pci::{BegunWrite, DmaAccess, DmaSegment, DmaSpace, Iommu};
use std::os::fd::AsFd;
use std::sync::Mutex;

const LONG: Duration = Duration::from_secs(20);

/// Waits as a monitor does, by the descriptor.
fn polled(write: &BegunWrite) -> Option<Result<(), PciError>> {
    let mut fds = [PollFd::new(write.as_fd(), PollFlags::POLLIN)];
    let timeout = PollTimeout::try_from(LONG).expect("a timeout");
    assert_eq!(poll(&mut fds, timeout), Ok(1), "it does not end");
    assert!(write.is_done());
    write.result()
}

fn is_readable(write: &BegunWrite) -> bool {
    poll(&mut [PollFd::new(write.as_fd(), PollFlags::POLLIN)], PollTimeout::ZERO) == Ok(1)
}

/// Blocks in the given call of an IOMMU until it is let go.
struct Stuck(Mutex<Option<mpsc::Receiver<()>>>);

impl Iommu for Stuck {
    fn map(&self, _: u64, _: *mut u8, _: usize, _: DmaAccess) -> io::Result<()> {
        Ok(())
    }
    fn unmap(&self, _: u64, _: usize) {
        if let Some(goes) = self.0.lock().expect("a channel").take() {
            let _ = goes.recv();
        }
    }
}

#[test]
fn a_stuck_reset_or_iommu_never_holds_the_thread_that_writes() {
    let _watchdog = Watchdog::new("begun writes", Duration::from_secs(60));
    for stuck_in_reset in [false, true] {
        let (go, goes) = mpsc::channel::<()>();
        let goes = Mutex::new(Some(goes));
        let stuck = Arc::new(Stuck(Mutex::new(None)));
        if !stuck_in_reset {
            *stuck.0.lock().expect("a channel") = goes.lock().expect("a channel").take();
        }
        let device = describe().on_reset(move |_, _| {
            if let Some(goes) = goes.lock().expect("a channel").take() {
                let _ = goes.recv();
            }
            Ok(())
        });
        let device = device.build().expect("a device");
        let mapping = device.map(BAR, MapOptions::new()).expect("it maps");
        let space = DmaSpace::new(stuck as _);
        space.map(1 << 32, &[DmaSegment::device(&mapping, 0..4096)], DmaAccess::Read).expect("enabled");
        let (at, bytes) = if stuck_in_reset { FLR } else { OFF };
        let first = device.begin_write(at, &bytes).expect("it begins");
        // Behind it: one that would be made at once alone.
        let second = device.begin_write(0x3c, &[7]).expect("it begins");
        let third = device.begin_write(OFF.0, &OFF.1).expect("it begins");
        assert!(!first.wait_timeout(PATIENCE) && !second.is_done() && !third.is_done());
        assert!(first.result().is_none() && !is_readable(&first));
        let token = CancelToken::new();
        thread::scope(|scope| {
            let waits = scope.spawn(|| first.wait_unless(&token));
            thread::sleep(PATIENCE);
            assert!(!waits.is_finished());
            token.cancel();
            assert!(!waits.join().expect("a thread"), "it goes on, and is waited for no longer");
        });
        assert_eq!((device.command(), registers(&device)[0x3c]), (2, 0), "the registers show what is");
        drop(go);
        assert!(first.wait_unless(&CancelToken::new()));
        for write in [&third, &second, &first] {
            polled(write).expect("a result").expect("it is made");
            assert!(write.result().is_none(), "taken");
        }
        assert_eq!((device.command(), registers(&device)[0x3c]), (0, 7));
        assert!(mapping.read::<u8>(0).is_err());
    }
}

#[test]
fn a_write_that_affects_nothing_else_is_made_at_once_and_by_no_thread() {
    let device = describe().build().expect("a device");
    for (at, bytes) in [(0x3c, vec![5]), (0x0c, vec![1, 2, 3, 4]), (0x14, vec![0xff; 4]), (0x10, vec![0xff; 4])] {
        let write = device.begin_write(at, &bytes).expect("it begins");
        assert!(is_readable(&write));
        write.result().expect("done").expect("made");
    }
    assert_eq!(registers(&device)[0x3c], 5);
    let refused = device.begin_write(255, &[0, 0]).expect_err("beyond the end");
    assert!(matches!(refused, PciError::ConfigRange { .. }), "{refused}");
}

#[test]
fn a_write_that_fails_later_says_so_then() {
    let device = describe().on_reset(|_, _| panic!("by design")).revoked_after_failed_reset();
    let device = device.build().expect("a device");
    let write = device.begin_write(FLR.0, &FLR.1).expect("it begins");
    let error = polled(&write).expect("a result").expect_err("it panics");
    assert!(matches!(error, PciError::Reset { now: AfterFailedReset::Revoked, .. }), "{error}");
    // The thread that made it is fine, or there is another.
    let write = device.begin_write(OFF.0, &OFF.1).expect("it begins");
    polled(&write).expect("a result").expect("made");
    assert_eq!(device.command(), 0);
    // A device whose last handle is dropped completes what was begun.
    let write = device.begin_write(COMMAND, &[6, 0]).expect("it begins");
    drop(device);
    polled(&write).expect("a result").expect("made");
}
