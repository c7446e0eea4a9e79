//! A guest loads a register of its BAR again and again, while the host takes the BAR away and gives it back.
//!
//! `cargo run --features kvm --example kvm_bar`; needs /dev/kvm and an x86-64 machine.
#![expect(unsafe_code, reason = "UNSAFETY: guest memory is handed to KVM by address")]

use kvm_bindings::{kvm_regs, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use memmap2::{MmapMut, MmapRaw};
use revocable_mmio::kvm::{ExitHandler, Handled, Memslots, Retention, WhenDisabled};
use revocable_mmio::{CancelToken, MapOptions, OnDisabled, Region};
use std::error::Error;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// Guest physical addresses: the page of code, and the BAR. The register that the guest loads.
const CODE: usize = 0x1000;
const BAR: u64 = 0x2_0000;
const REGISTER: usize = 0x40;
/// For real mode: loads the register, reports its value, and begins again.
#[rustfmt::skip]
const PROGRAM: &[u8] = &[
    0x66, 0xa1, 0x40, 0x00, // mov 0x40,%eax
    0x66, 0xe7, 0x10, // out %eax,$0x10
    0xeb, 0xf7, // jmp 0
];

struct Guest {
    vcpu: VcpuFd,
    vm: Arc<VmFd>,
    /// Declared last: KVM reaches it as long as the virtual machine exists.
    _ram: MmapRaw,
}

impl Guest {
    fn new() -> Result<Self, Box<dyn Error>> {
        let vm = Kvm::new().map_err(|e| format!("this example needs /dev/kvm: {e}"))?.create_vm()?;
        let _ = vm.set_tss_address(0xfffb_d000);
        let mut ram = MmapMut::map_anon(0x1_0000)?;
        ram[CODE..][..PROGRAM.len()].copy_from_slice(PROGRAM);
        let ram = MmapRaw::from(ram);
        let slot = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: ram.len() as u64,
            userspace_addr: ram.as_mut_ptr().expose_provenance() as u64,
        };
        // SAFETY: `Guest` keeps the mapping as long as the virtual machine, and nothing else accesses it from now on.
        unsafe { vm.set_user_memory_region(slot) }?;
        let vcpu = vm.create_vcpu(0)?;
        let mut sregs = vcpu.get_sregs()?;
        (sregs.cs.base, sregs.cs.selector) = (0, 0);
        (sregs.ds.base, sregs.ds.selector) = (BAR, u16::try_from(BAR >> 4)?);
        vcpu.set_sregs(&sregs)?;
        vcpu.set_regs(&kvm_regs { rip: CODE as u64, rflags: 2, ..Default::default() })?;
        Ok(Self { vcpu, vm: Arc::new(vm), _ram: ram })
    }
}

/// The exit loop of a VMM, up to the guest's next report: what it loaded, and with how many exits.
fn load(guest: &mut Guest, exits: &mut ExitHandler) -> Result<String, Box<dyn Error>> {
    let mut reentered = 0;
    loop {
        match exits.handle(guest.vcpu.run())? {
            Handled::Reenter => reentered += 1,
            Handled::Again => drop(exits.again(&mut guest.vcpu)?),
            Handled::Other(Ok(VcpuExit::IoOut(0x10, value))) => {
                let value = u32::from_le_bytes(value.try_into()?);
                return Ok(format!("the guest loads {value:#010x}, after {reentered} exit(s) of the BAR's"));
            }
            other => return Err(format!("not expected here: {other:?}").into()),
        }
    }
}

fn show(retention: Retention) -> Result<(), Box<dyn Error>> {
    let mut guest = Guest::new()?;
    let bar = Region::builder(64 << 10).name("bar0").build()?;
    bar.owner().write(REGISTER, 0xcafe_f00d_u32)?;
    let slots = Memslots::new(Arc::clone(&guest.vm));
    // All-ones memory in the slot needs no exit, and works for every instruction.
    let policy = if retention == Retention::AllOnes { OnDisabled::AllOnes } else { OnDisabled::Sigbus };
    let mut slot = slots.add(1, BAR, Arc::new(bar.map(MapOptions::new().on_disabled(policy))?), retention)?;
    let mut exits = ExitHandler::new(slots.clone(), WhenDisabled::UnsupportedRequest, CancelToken::new());

    println!("memslot while disabled: {retention:?}");
    println!("  enabled:   {}", load(&mut guest, &mut exits)?);
    bar.disable()?;
    println!("  disabled:  {}", load(&mut guest, &mut exits)?);
    bar.owner().write(REGISTER, 0x0000_beef_u32)?;
    bar.enable()?;
    load(&mut guest, &mut exits)?;
    println!("  enabled:   {}", load(&mut guest, &mut exits)?);

    if retention == Retention::AllOnes {
        return Ok(());
    }
    // Another policy for the guest: it waits as long as the memory is off.
    let mut waiting = ExitHandler::new(slots, WhenDisabled::Wait, CancelToken::new());
    bar.disable()?;
    let began = Instant::now();
    thread::scope(|scope| -> Result<(), Box<dyn Error>> {
        let enabling = scope.spawn(|| {
            thread::sleep(Duration::from_millis(20));
            bar.enable()
        });
        println!("  it waits:  {}, {:.0?} later", load(&mut guest, &mut waiting)?, began.elapsed());
        enabling.join().map_err(|_| "a panic")??;
        Ok(())
    })?;
    Ok(slot.remove()?)
}

fn main() -> Result<(), Box<dyn Error>> {
    show(Retention::AllOnes)?;
    show(Retention::Remove)?;
    show(Retention::Keep)
}
