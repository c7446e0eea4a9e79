//! A vCPU thread that runs something else while a page is away, as KVM's asynchronous page faults let a guest do. A task
//! whose access would wait is parked; a completion makes it runnable. Needs Linux and no privilege.
//!
//! `cargo run --example async_faults`

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use revocable_mmio::fault::FaultFlags;
use revocable_mmio::{AccessError, Caller, FaultQueue, FaultToken, MapOptions, Mapping, OnDisabled, Region, Submitted};
use std::error::Error;
use std::os::fd::AsFd;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

/// A task of the guest. Some use the device, some only compute.
struct Task {
    name: &'static str,
    /// The register that it stores to, in bytes, if it uses the device.
    register: Option<usize>,
    steps: u64,
    /// Why it does not run: a fault that has not completed.
    waits: Option<FaultToken>,
}

impl Task {
    fn new(name: &'static str, register: Option<usize>) -> Self {
        Self { name, register, steps: 0, waits: None }
    }
}

/// The vCPU: a thread that never sleeps for a page while another task can run.
struct Vcpu<'a> {
    region: &'a Region,
    mapping: &'a Mapping,
    queue: FaultQueue,
    parked: u64,
}

impl Vcpu<'_> {
    /// One step of a task. If its memory is away, the fault is submitted and the task is parked.
    fn step(&mut self, task: &mut Task) -> Result<(), Box<dyn Error>> {
        let Some(register) = task.register else {
            task.steps += 1;
            return Ok(());
        };
        match self.mapping.try_write(register, task.steps + 1) {
            Ok(()) => task.steps += 1,
            Err(AccessError::WouldBlock { .. } | AccessError::Disabled { .. }) => {
                // Block: a disabled region is waited for as well, until it is enabled.
                let caller = Caller::new(FaultFlags::DEFAULT).on_disabled(OnDisabled::Block);
                if let Submitted::Queued(token) = self.region.fault_async(register, caller, &self.queue)? {
                    task.waits = Some(token);
                    self.parked += 1;
                }
                // `Ready`: the memory is back already. `Pending`: an earlier token of this queue completes.
            }
            Err(other) => return Err(other.into()),
        }
        Ok(())
    }

    /// Makes the tasks runnable whose faults have completed. A hypervisor injects an interrupt here ("page ready").
    fn wake(&self, tasks: &mut [Task]) -> Result<(), Box<dyn Error>> {
        while let Some(completion) = self.queue.next() {
            completion.result?;
            let is_its = |task: &&mut Task| task.waits.as_ref().is_some_and(|token| token.id() == completion.id);
            if let Some(task) = tasks.iter_mut().find(is_its) {
                task.waits = None;
            }
        }
        Ok(())
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let region = Region::builder(64 << 10).name("bar0").build()?;
    let mapping = region.map(MapOptions::new())?;
    let mut vcpu = Vcpu { region: &region, mapping: &mapping, queue: FaultQueue::new(64)?, parked: 0 };
    let mut tasks = [Task::new("driver A", Some(0x0)), Task::new("driver B", Some(0x1000)), Task::new("compute", None)];

    thread::scope(|scope| -> Result<(), Box<dyn Error>> {
        let (busy, is_busy) = mpsc::channel();
        let (region, faults) = (&region, vcpu.queue.clone());
        scope.spawn(move || {
            region.reset(|_device| {
                let _ = busy.send(());
                // A reset that takes until both drivers have faulted, and longer.
                while faults.outstanding() < 2 {
                    thread::yield_now();
                }
                thread::sleep(Duration::from_millis(20));
            })
        });
        is_busy.recv()?;
        let (began, before) = (Instant::now(), tasks[2].steps);
        while vcpu.parked < 2 || tasks.iter().any(|task| task.waits.is_some()) {
            for task in tasks.iter_mut().filter(|task| task.waits.is_none()) {
                vcpu.step(task)?;
            }
            vcpu.wake(&mut tasks)?;
        }
        let done = tasks[2].steps - before;
        println!(
            "the device was being reset for {:.0?}: {} tasks parked, \"compute\" made {done} steps",
            began.elapsed(),
            vcpu.parked
        );
        if done == 0 { Err("nothing ran meanwhile".into()) } else { Ok(()) }
    })?;

    for task in &mut tasks {
        vcpu.step(task)?;
        println!("{:<8} runs: {} steps", task.name, task.steps);
    }
    // With nothing left to run, the thread sleeps until a completion arrives: the queue's descriptor fits into any event loop.
    let idle = poll(&mut [PollFd::new(vcpu.queue.as_fd(), PollFlags::POLLIN)], PollTimeout::ZERO)?;
    println!("completions left in the queue: {idle}");
    Ok(())
}
