//! A guest reads and writes its BAR while the host takes it away and gives it back. The guest's results are printed as
//! a timeline.
//!
//! `cargo run --features kvm --example kvm_bar` (needs /dev/kvm)

#[path = "../tests/support/guest/mod.rs"]
mod guest;

use guest::{BAR, BAR_LEN, Guest, Mode, Word, code};
use kvm_ioctls::VcpuExit;
use revocable_mmio::kvm::{ExitHandler, Handled, Memslots, Retention, WhenDisabled};
use revocable_mmio::{CancelToken, MapOptions, OnDisabled, Region};
use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The result of one load of the guest.
#[derive(PartialEq, Eq)]
struct Seen {
    value: u32,
    /// Exits on the way.
    exits: u64,
    error: bool,
}

struct Machine {
    guest: Guest,
    exits: ExitHandler,
    start: Instant,
}

impl Machine {
    /// Lets the guest do one load.
    fn load(&mut self) -> Result<Seen, Box<dyn Error>> {
        let mut exits = 0;
        loop {
            match self.exits.handle(self.guest.vcpu.run()) {
                Ok(Handled::Reenter) => exits += 1,
                Ok(Handled::Again) => drop(self.exits.again(&mut self.guest.vcpu)?),
                Ok(Handled::Cancelled) => return Err("no thread cancels".into()),
                Ok(Handled::Other(Ok(VcpuExit::IoOut(0x10, _)))) => {
                    return Ok(Seen { value: self.guest.ram.get(Word::VALUE), exits, error: false });
                }
                Ok(Handled::Other(exit)) => return Err(format!("unexpected: {exit:?}").into()),
                Err(error) => {
                    self.say(&format!("the VMM gets: {error}"));
                    return Ok(Seen { value: 0, exits, error: true });
                }
            }
        }
    }

    /// Lets the guest load a few times and prints the values, equal ones as one line.
    fn watch(&mut self, loads: usize) -> Result<(), Box<dyn Error>> {
        let mut last: Option<(Seen, usize)> = None;
        for _ in 0..loads {
            let seen = self.load()?;
            match &mut last {
                Some((same, times)) if *same == seen => *times += 1,
                _ => {
                    self.tell(last.take());
                    last = Some((seen, 1));
                }
            }
        }
        self.tell(last);
        Ok(())
    }

    fn tell(&self, seen: Option<(Seen, usize)>) {
        if let Some((Seen { value, exits, error: false }, times)) = seen {
            self.say(&format!("    guest loads {value:#010x}   x{times}, {exits} exit(s) each"));
        }
    }

    fn say(&self, what: &str) {
        println!("{:>9.3} ms  {what}", self.start.elapsed().as_secs_f64() * 1e3);
    }
}

fn timeline(retention: Retention) -> Result<(), Box<dyn Error>> {
    println!("memslot while disabled: {retention:?}");
    let guest = Guest::new(&guest::kvm()?, Mode::Real, code::LOADS_16);
    guest.ram.set(Word::COUNT, 1);
    guest.ram.set(Word::AT, 0x40);
    let bar = Region::builder(BAR_LEN).name("bar0").build()?;
    bar.owner().write::<u32>(0x40, 0xcafe_f00d)?;

    let slots = Memslots::new(Arc::clone(&guest.vm));
    let policy = if retention == Retention::AllOnes { OnDisabled::AllOnes } else { OnDisabled::Sigbus };
    let slot = slots.add(1, BAR, Arc::new(bar.map(MapOptions::new().on_disabled(policy))?), retention)?;
    let exits = ExitHandler::new(slots.clone(), WhenDisabled::UnsupportedRequest, CancelToken::new());
    let mut machine = Machine { guest, exits, start: Instant::now() };

    machine.say("enabled");
    machine.watch(3)?;
    bar.disable()?;
    machine.say("disable() has returned: PCI_COMMAND.MEM is 0");
    machine.watch(3)?;
    bar.owner().write::<u32>(0x40, 0x0000_beef)?;
    machine.say("the device changes its register meanwhile");
    machine.watch(2)?;
    bar.enable()?;
    machine.say("enable() has returned");
    machine.watch(3)?;
    bar.reset(|device| device.write::<u32>(0x40, 0))??;
    machine.say("reset() has returned: the register is 0");
    machine.watch(2)?;

    if retention == Retention::AllOnes {
        // No access exits, so none can wait.
        machine.say(&format!("{:?}", slot.stats()));
        return Ok(());
    }
    // The guest waits as long as the device is off.
    bar.disable()?;
    machine.say("disabled; from now on guest accesses wait for enable()");
    machine.exits = ExitHandler::new(slots, WhenDisabled::Wait, CancelToken::new());
    std::thread::scope(|scope| -> Result<(), Box<dyn Error>> {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(20));
            bar.enable()
        });
        machine.watch(1)?;
        machine.say("enabled by another thread after 20 ms; the guest saw nothing of it");
        Ok(())
    })?;
    machine.say(&format!("{:?}", slot.stats()));
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    timeline(Retention::AllOnes)?;
    println!();
    timeline(Retention::Remove)?;
    println!();
    timeline(Retention::Keep)
}
