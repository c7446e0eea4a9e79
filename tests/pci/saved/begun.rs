//! Writes that were begun, where a state is saved and where it is restored.

use super::*;
use std::sync::OnceLock;
use std::thread;

/// Saves the device when a place is removed, before the registers change, and when the change is told, after that.
#[derive(Default)]
struct Saves {
    device: OnceLock<PciDevice>,
    saved: Mutex<Vec<DeviceState>>,
    both_begun: AtomicBool,
}

impl Saves {
    fn save(&self) {
        support::eventually("both writes are begun", || self.device.get().is_none() || self.both_begun.load(SeqCst));
        let saved = self.device.get().map(state);
        self.saved.lock().expect("a list").extend(saved);
    }
}

impl AddressMap for Saves {
    fn insert(&self, _: &BarPlace) -> io::Result<()> {
        Ok(())
    }
    fn remove(&self, _: &BarPlace) {
        self.save();
    }
}

#[test]
fn a_saved_state_has_a_begun_write_in_its_registers_or_as_begun_and_not_both() {
    let _watchdog = Watchdog::new("saving", Duration::from_secs(60));
    let saves = Arc::new(Saves::default());
    let told = Arc::clone(&saves);
    let source = describe().on_reset(|_, _| Ok(())).on_command(move |_, _| told.save()).build().expect("a device");
    write(&source, 0x18, 0xe000_0000);
    command(&source, 2);
    let _following = source.follow(Arc::clone(&saves) as _).expect("nothing refuses");
    saves.device.set(source.clone()).expect("not yet");
    // One whose second piece is the last of it.
    for (at, bytes) in [(4, vec![4, 0]), (2, vec![0, 0, 2, 0])] {
        let writes = [source.begin_write(at, &bytes), source.begin_write(0x3c, &[7])].map(|w| w.expect("it begins"));
        saves.both_begun.store(true, SeqCst);
        assert!(writes.iter().all(|write| write.wait_timeout(LONG)));
        saves.both_begun.store(false, SeqCst);
        let after = source.save();
        for state in saves.saved.lock().expect("a list").drain(..) {
            let destination = build();
            destination.restore(&state).expect("its own kind");
            let last = destination.begin_write(0x0c, &[0]).expect("it begins");
            assert!(last.wait_timeout(LONG));
            assert_eq!(destination.save(), after, "the rest is made there");
            // The second write is still to come, and the registers say whether the first is.
            let shows = destination.command() == u16::from_le_bytes([state_command(&state), 0]);
            assert_eq!(begun(&state), if shows { 1 } else { 2 }, "{state:?}");
        }
    }
    // For the place that is left at the end.
    saves.both_begun.store(true, SeqCst);
}

/// PCI_COMMAND's low byte. The configuration space is before the list of writes, which has its length first.
fn state_command(state: &DeviceState) -> u8 {
    let bytes = state.to_bytes();
    bytes[bytes.len() - list(&bytes).len() - 8 - 256 + 4]
}

fn begun(state: &DeviceState) -> usize {
    let bytes = state.to_bytes();
    let (mut rest, mut count) = (list(&bytes), 0);
    while let Some((head, bytes)) = rest.split_at_checked(16) {
        let len = u64::from_le_bytes(head[8..].try_into().expect("8 bytes"));
        rest = &bytes[usize::try_from(len).expect("small")..];
        count += 1;
    }
    count
}

fn list(bytes: &[u8]) -> &[u8] {
    let mut parts = (8..=bytes.len()).map(|at| bytes.split_at(at));
    let list = parts.find(|(head, list)| head.ends_with(&(list.len() as u64).to_le_bytes()));
    list.expect("its length is before it").1
}

#[test]
fn writes_that_were_begun_before_a_restoration_are_made_before_it() {
    let _watchdog = Watchdog::new("restoring", Duration::from_secs(60));
    let source = build();
    command(&source, 2);
    write(&source, 0x3c, 9);
    let state = state(&source);
    for _ in 0..20 {
        let (entered, is_entered) = mpsc::sync_channel(1);
        let (go, goes) = mpsc::channel::<()>();
        let goes = Mutex::new(goes);
        let reset = move |_: &PciDevice, _| {
            entered.send(()).map_err(io::Error::other)?;
            let _ = goes.lock().expect("a channel").recv();
            Ok(())
        };
        let destination = describe().on_reset(reset).build().expect("a device");
        let first = destination.begin_write(0x58, &[0, 0x80]).expect("it begins");
        is_entered.recv().expect("the reset begins");
        let others = [4, 0, 6, 4, 0, 4].map(|command| destination.begin_write(4, &[command, 0]).expect("it begins"));
        thread::scope(|scope| {
            let restored = scope.spawn(|| destination.restore(&state));
            support::a_moment();
            assert!(!restored.is_finished(), "it waits for the first one");
            drop(go);
            restored.join().expect("no panic").expect("its own kind");
        });
        assert!(first.wait_timeout(LONG) && others.iter().all(|write| write.wait_timeout(LONG)));
        assert_eq!(destination.save(), state);
    }
}

#[test]
fn a_restoration_under_a_guard_that_a_begun_write_waits_for_is_refused() {
    let _watchdog = Watchdog::new("restoring", Duration::from_secs(60));
    let destination = build();
    let state = state(&destination);
    command(&destination, 2);
    let mapping = destination.map(BAR, MapOptions::new()).expect("it maps");
    let guard = mapping.try_access().expect("enabled");
    let write = destination.begin_write(4, &[0, 0]).expect("it begins");
    let refused = destination.restore(&state).expect_err("it would wait for this thread");
    assert!(matches!(refused, PciError::WouldDeadlock), "{refused}");
    drop(guard);
    assert!(write.wait_timeout(LONG));
    destination.restore(&state).expect("nothing is in the way");
}

#[test]
fn a_power_state_that_the_device_does_not_have_is_refused() {
    for (state, has) in [(1, false), (2, false), (3, true)] {
        let source = build();
        let mut bytes = source.save().to_bytes();
        let control = bytes.len() - 8 - 256 + 0x44;
        bytes[control] = state;
        let state = DeviceState::from_bytes(&bytes).expect("whole");
        let (destination, before) = (build(), source.save());
        let restored = destination.restore(&state).map_err(|e| e.errno());
        assert_eq!(restored, if has { Ok(()) } else { Err(EINVAL) });
        assert_eq!(destination.save() == before, !has);
    }
    let build = || PciDevice::builder(1, 2).power_with_d1_d2(0x40).build().expect("a device");
    let (source, destination) = (build(), build());
    source.write(Space::Config, 0x44, &[1][..]).expect("a register");
    destination.restore(&source.save()).expect("it has D1");
    assert_eq!(destination.power_state(), 1);
}
