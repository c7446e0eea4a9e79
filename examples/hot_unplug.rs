//! A NIC whose BAR is pulled, reset and brought back while threads use it. The run is printed as a timeline.
//!
//! `cargo run --example hot_unplug`

use revocable_mmio::pci::{Bar, PciDevice, Space};
use revocable_mmio::{AccessError, InvalidateNotifier, MapOptions, Mapping, NotifyError};
use std::error::Error;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

const REGISTERS: Space = Space::Bar(0);
/// Registers of the NIC, as offsets in BAR 0.
const STATUS: usize = 0x08;
const SENT: usize = 0x10;
const TAIL: usize = 0x18;

const COMMAND: u64 = 4;
const MEMORY_OFF: [u8; 2] = [4, 0];
const MEMORY_ON: [u8; 2] = [6, 0];
/// PMCSR of the power-management capability at 0x40.
const POWER: u64 = 0x44;

/// Prints events with their times.
#[derive(Clone)]
struct Timeline(Instant, Arc<Mutex<()>>);

impl Timeline {
    fn say(&self, who: &str, what: &str) {
        let _one_at_a_time = self.1.lock();
        println!("{:>8.1} ms  {who:<8}  {what}", self.0.elapsed().as_secs_f64() * 1e3);
    }
}

/// Outcomes of a driver's accesses between two looks.
#[derive(Default)]
struct Seen {
    sent: AtomicU64,
    refused: AtomicU64,
    longest_us: AtomicU64,
}

/// Stands for the memslots of a VMM, which are told of a revocation before it happens.
struct Memslots(Timeline);

impl InvalidateNotifier for Memslots {
    fn before_revoke(&self, range: Range<usize>) -> Result<(), NotifyError> {
        self.0.say("memslots", &format!("taken out: {range:x?}"));
        Ok(())
    }

    fn after_restore(&self, range: Range<usize>) -> Result<(), NotifyError> {
        self.0.say("memslots", &format!("put back:  {range:x?}"));
        Ok(())
    }
}

/// A driver that sends as fast as it can, through its own mapping. A refused access is an error, and does not end the
/// driver.
fn driver(mapping: &Mapping, seen: &Seen, stop: &AtomicBool) {
    while !stop.load(Relaxed) {
        let since = Instant::now();
        let sent = mapping.write(TAIL, 1u32).and_then(|()| mapping.read::<u32>(STATUS));
        let took = u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX);
        seen.longest_us.fetch_max(took, Relaxed);
        match sent {
            Ok(_) => drop(seen.sent.fetch_add(1, Relaxed)),
            Err(AccessError::Disabled { .. }) => {
                seen.refused.fetch_add(1, Relaxed);
                thread::sleep(Duration::from_micros(200));
            }
            Err(e) => panic!("a driver never gets this: {e}"),
        }
    }
}

/// The device side: always reaches its registers, whatever state the guest has put the device in.
fn emulate(nic: &PciDevice, stop: &AtomicBool) {
    let Some(registers) = nic.owner(REGISTERS) else { return };
    while !stop.load(Relaxed) {
        if registers.read::<u32>(TAIL) == Ok(1) {
            let _ = registers.write(TAIL, 0u32);
            let sent = registers.read::<u64>(SENT).unwrap_or(0);
            let _ = registers.write(SENT, sent + 1);
        }
        thread::yield_now();
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let timeline = Timeline(Instant::now(), Arc::default());
    let resetting = timeline.clone();
    let nic = PciDevice::builder(0x8086, 0x10d3)
        .name("nic")
        .command(u16::from_le_bytes(MEMORY_ON))
        .bar(0, Bar::memory(128 << 10))
        .power(0x40)
        .on_reset(move |nic, kind| {
            resetting.say("device", &format!("reset begins ({kind:?}): accesses wait"));
            if let Some(registers) = nic.owner(REGISTERS) {
                registers.fill(0, 0, 4096).map_err(std::io::Error::other)?;
            }
            thread::sleep(Duration::from_millis(60));
            resetting.say("device", "reset ends");
            Ok(())
        })
        .build()?;
    let registers = nic.region(REGISTERS).ok_or("a NIC has registers")?;
    timeline.say("device", &format!("{} with {:#x} bytes of registers", nic.name(), registers.len()));
    let _subscription = registers.subscribe(0..registers.len(), Arc::new(Memslots(timeline.clone())));
    let mappings = [nic.map(REGISTERS, MapOptions::new())?, nic.map(REGISTERS, MapOptions::new())?];
    let (seen, stop) = (Seen::default(), AtomicBool::new(false));

    thread::scope(|scope| {
        for mapping in &mappings {
            scope.spawn(|| driver(mapping, &seen, &stop));
        }
        scope.spawn(|| emulate(&nic, &stop));
        let scenes = scenes(&nic, &timeline, &seen);
        stop.store(true, Relaxed);
        scenes
    })?;
    let sent = nic.owner(REGISTERS).ok_or("registers")?.read::<u64>(SENT)?;
    timeline.say("device", &format!("has sent {sent} frames since its reset; no thread was killed"));
    Ok(())
}

/// Lets the drivers run for a while, and prints their outcomes.
fn watch(timeline: &Timeline, seen: &Seen, expect: &str) -> Result<(), Box<dyn Error>> {
    for counter in [&seen.sent, &seen.refused, &seen.longest_us] {
        counter.store(0, Relaxed);
    }
    thread::sleep(Duration::from_millis(50));
    let [sent, refused] = [&seen.sent, &seen.refused].map(|counter| counter.load(Relaxed));
    timeline.say("drivers", &format!("{sent} sends went through, {refused} were refused"));
    let as_expected = match expect {
        "all" => refused == 0 && sent > 0,
        // A send before the revocation may be counted after it, one for each driver.
        _ => sent <= 2 && refused > 0,
    };
    if as_expected { Ok(()) } else { Err(format!("expected {expect} of them to go through").into()) }
}

fn scenes(nic: &PciDevice, timeline: &Timeline, seen: &Seen) -> Result<(), Box<dyn Error>> {
    watch(timeline, seen, "all")?;
    timeline.say("guest", "clears PCI_COMMAND.MEM");
    nic.write(Space::Config, COMMAND, &MEMORY_OFF[..])?;
    watch(timeline, seen, "none")?;
    timeline.say("guest", "sets it again");
    nic.write(Space::Config, COMMAND, &MEMORY_ON[..])?;
    watch(timeline, seen, "all")?;

    timeline.say("guest", "resets the device");
    let refused = seen.refused.load(Relaxed);
    seen.longest_us.store(0, Relaxed);
    nic.reset()?;
    thread::sleep(Duration::from_millis(5));
    let waited = seen.longest_us.load(Relaxed) / 1000;
    timeline.say("drivers", &format!("waited up to {waited} ms, {} refused", seen.refused.load(Relaxed) - refused));

    timeline.say("guest", "sends it to D3hot");
    nic.write(Space::Config, POWER, &[3u8, 0][..])?;
    watch(timeline, seen, "none")?;
    let read = nic.read(REGISTERS, 0, &mut [0; 4][..]);
    let told = read.map_or_else(|e| e.to_string(), |_| "was served".into());
    timeline.say("vmm", &format!("a read on the guest's behalf: {told}"));
    timeline.say("guest", "and back to D0");
    nic.write(Space::Config, POWER, &[0u8, 0][..])?;
    watch(timeline, seen, "all")
}
