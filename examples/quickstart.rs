//! Device memory that is taken away and given back, in five steps. Needs Linux and no privilege.
//!
//! `cargo run --example quickstart`

use revocable_mmio::{AccessError, MapOptions, Mapping, Region};
use std::error::Error;

/// Registers of the device, as offsets in bytes.
const CONTROL: usize = 0x10;
const STATUS: usize = 0x14;

/// A driver's access. That the memory is away is an ordinary result, not a signal.
fn poll(driver: &Mapping) -> Result<Option<u32>, AccessError> {
    match driver.read::<u32>(STATUS) {
        Ok(status) => Ok(Some(status)),
        Err(AccessError::Disabled { .. }) => Ok(None),
        Err(other) => Err(other),
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    // 1. The memory, and a view of it. Any number of views is possible.
    let bar = Region::builder(64 << 10).name("bar0").build()?;
    let driver = bar.map(MapOptions::new())?;
    driver.write(CONTROL, 1u32)?;
    println!("built:    {} bytes, strategy {}, the driver reads {:?}", bar.len(), bar.strategy(), poll(&driver)?);

    // 2. A guard: the memory stays while it lives, and its address can be used.
    let guard = driver.try_access()?;
    match bar.try_disable() {
        Err(error) => println!("guarded:  {error}"),
        Ok(_) => return Err("a guard did not hold".into()),
    }
    drop(guard);

    // 3. Taken away. Once this returns, nothing reaches the memory through any mapping.
    bar.disable()?;
    println!("disabled: the driver reads {:?}", poll(&driver)?);

    // 4. The device's own side works in every state.
    bar.owner().write(STATUS, 7u32)?;

    // 5. Given back: the same mapping, the same address, the same content.
    bar.enable()?;
    println!(
        "enabled:  the driver reads {:?}, and its own store is still {}",
        poll(&driver)?,
        driver.read::<u32>(CONTROL)?
    );

    let stats = bar.stats();
    println!("counted:  {} disable, {} enable, {} refused access", stats.disables, stats.enables, stats.refused);
    Ok(())
}
