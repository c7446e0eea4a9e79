//! The device model over a device that takes its time for a write.

use crate::pci::hardware::Hardware;
use crate::pci::{Bar, BegunWrite, PciDevice, ResetKind, Space};
use crate::sys::SysError;
use nix::errno::Errno;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex, mpsc};
use std::thread;
use std::time::Duration;

const SLOW: usize = 0xf0;

/// A device that takes a write to `SLOW` when it is let: it waits twice for others.
struct Slow {
    bytes: Mutex<[u8; 256]>,
    writes: Mutex<Vec<(usize, Vec<u8>)>>,
    at_work: Barrier,
    refuses: AtomicUsize,
}

impl Slow {
    fn new() -> Arc<Self> {
        let refuses = AtomicUsize::new(usize::MAX);
        Arc::new(Self { bytes: Mutex::new([0x11; 256]), writes: Mutex::default(), at_work: Barrier::new(2), refuses })
    }
}

impl Hardware for Slow {
    fn read(&self, at: usize, into: &mut [u8]) -> Result<(), SysError> {
        into.copy_from_slice(&self.bytes.lock().expect("no panic")[at..][..into.len()]);
        Ok(())
    }

    fn write(&self, at: usize, bytes: &[u8]) -> Result<(), SysError> {
        if at == SLOW {
            self.at_work.wait();
            self.at_work.wait();
        }
        if self.refuses.load(Ordering::Relaxed) == at {
            return Err(SysError::new("pwrite", Errno::EIO));
        }
        self.bytes.lock().expect("no panic")[at..][..bytes.len()].copy_from_slice(bytes);
        self.writes.lock().expect("no panic").push((at, bytes.to_vec()));
        Ok(())
    }

    fn is_memory_enabled(&self, _: BorrowedFd<'_>) -> bool {
        true
    }
}

fn model(slow: &Arc<Slow>) -> PciDevice {
    let builder = PciDevice::builder(1, 2).bar(0, Bar::memory(4096)).real(Arc::clone(slow) as _);
    builder.config(SLOW, &[0; 4], &[0xff; 4]).build().expect("a device")
}

fn read(device: &PciDevice, at: u64) -> u8 {
    let mut byte = [0];
    device.read(Space::Config, at, &mut byte[..]).expect("configuration space");
    byte[0]
}

#[test]
fn while_a_real_device_takes_a_write_others_read_its_registers() {
    let slow = Slow::new();
    let device = model(&slow);
    let (looked, has_looked) = mpsc::channel();
    thread::scope(|scope| {
        let writer = scope.spawn(|| device.write(Space::Config, SLOW as u64, &[7][..]));
        slow.at_work.wait();
        scope.spawn(|| {
            let own = (read(&device, 0x40), read(&device, SLOW as u64));
            let registers = (device.command(), device.power_state(), device.place(Space::Bar(0)));
            looked.send((own, registers, device.info(Space::Config).size)).expect("the test listens");
        });
        let seen = has_looked.recv_timeout(Duration::from_secs(20));
        // Another writer's turn comes, and is not waited for.
        let begun = device.begin_write(0x3c, &[9]).expect("it begins");
        let overtakes = begun.wait_timeout(Duration::from_millis(20));
        let writes = !writer.is_finished();
        slow.at_work.wait();
        writer.join().expect("no panic").expect("taken");
        assert!(begun.wait_timeout(Duration::from_secs(20)));
        // The second is the device's own, which had yet to take the write.
        assert_eq!(seen, Ok(((0x11, 0x11), (0, 0, None), 256)), "while the device takes its time");
        assert!(writes && !overtakes, "in order, not beside the first");
    });
    assert_eq!(*slow.writes.lock().expect("no panic"), [(SLOW, vec![7]), (0x3c, vec![9])]);
}

#[test]
fn a_write_that_begins_is_not_waited_for_if_the_device_is_slow() {
    let slow = Slow::new();
    let device = model(&slow);
    let begun = device.begin_write(SLOW as u64, &[7]).expect("it begins");
    slow.at_work.wait();
    assert!(!begun.is_done());
    slow.at_work.wait();
    assert!(begun.wait_timeout(Duration::from_secs(20)));
    assert!(matches!(begun.result(), Some(Ok(()))), "{:?}", BegunWrite::result(&begun));
}

#[test]
fn a_write_that_a_real_device_does_not_take_is_an_error_of_that_write_alone() {
    let slow = Slow::new();
    let device = model(&slow);
    // Interrupt line; PCI_COMMAND's low byte.
    for at in [0x3c, 4] {
        slow.refuses.store(at, Ordering::Relaxed);
        let refused = device.write(Space::Config, at as u64, &[2][..]).expect_err("refused");
        assert_eq!(refused.errno(), nix::libc::EIO);
        slow.refuses.store(usize::MAX, Ordering::Relaxed);
        device.write(Space::Config, at as u64, &[2][..]).expect("taken");
    }
    assert_eq!(read(&device, 4), 2);
}

#[test]
fn a_reset_bit_is_for_the_reset_handler_and_not_for_the_device() {
    let slow = Slow::new();
    let resets = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&resets);
    // The express capability of version 1 that ends within the page.
    let builder = PciDevice::builder(1, 2).real(Arc::clone(&slow) as _).express(0xe0).advanced_features(0xf4);
    let builder = builder.on_reset(move |_, kind| {
        assert_eq!(kind, ResetKind::FunctionLevel);
        count.fetch_add(1, Ordering::Relaxed);
        Ok(())
    });
    let device = builder.build().expect("a device");
    device.write(Space::Config, 0xe8, &[0x3f, 0x80][..]).expect("device control");
    device.write(Space::Config, 0xf8, &[1][..]).expect("control of Advanced Features");
    assert_eq!(resets.load(Ordering::Relaxed), 2);
    assert_eq!(*slow.writes.lock().expect("no panic"), [(0xe8, vec![0x3f, 0]), (0xf8, vec![0])]);
}
