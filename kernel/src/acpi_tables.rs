//! The firmware's tables: found by the `acpi` crate, read by ours where it errs (SRAT, SLIT).

use acpi::fadt::Fadt;
use acpi::sdt::{SdtHeader, Signature};
use acpi::{AcpiHandler, AcpiTable, AcpiTables, PhysicalMapping};
use core::ptr::NonNull;
use ksync::arch::phys_to_virt;
use topology::{Topology, Warnings};

#[derive(Clone, Copy)]
struct DirectMap;

impl AcpiHandler for DirectMap {
    unsafe fn map_physical_region<T>(&self, pa: usize, size: usize) -> PhysicalMapping<Self, T> {
        let va = NonNull::new(phys_to_virt(pa).cast()).expect("the direct map is not at 0");
        // SAFETY: everything the firmware points to is in the direct map for good.
        unsafe { PhysicalMapping::new(pa, va, size, size, *self) }
    }
    fn unmap_physical_region<T>(_: &PhysicalMapping<Self, T>) {}
}

/// What boot needs of the tables.
pub struct Firmware {
    /// Warnings about tables that could not be used.
    pub warnings: Warnings,
    /// I/O port of the ACPI timer.
    pub pm_timer: Option<u16>,
}

macro_rules! raw_tables { ($($name:ident = $signature:ident),*) => { $(
    /// A table of which only the header is known to the `acpi` crate.
    #[repr(C, packed)]
    struct $name {
        header: SdtHeader,
    }
    // SAFETY: every ACPI table starts with the header.
    unsafe impl AcpiTable for $name {
        const SIGNATURE: Signature = Signature::$signature;
        fn header(&self) -> &SdtHeader {
            &self.header
        }
    }
)* } }
raw_tables!(RawMadt = MADT, RawSrat = SRAT, RawSlit = SLIT);

/// The bytes of a table.
fn bytes_of<T: AcpiTable>(tables: &AcpiTables<DirectMap>) -> Option<&'static [u8]> {
    let mapping = tables.find_table::<T>().ok()?;
    let (at, len) = (
        mapping.virtual_start().as_ptr().cast::<u8>(),
        mapping.get().header().length as usize,
    );
    // SAFETY: a table that the crate found and whose checksum holds; it stays in the direct map.
    Some(unsafe { core::slice::from_raw_parts(at, len) })
}

/// Reads MADT, SRAT, SLIT and FADT into `topology`.
pub fn read(rsdp: Option<u64>, topology: &mut Topology) -> Firmware {
    let rsdp = rsdp.expect("the boot stage found no RSDP: this kernel needs ACPI");
    // SAFETY: the boot stage got the address from the loader.
    let tables = unsafe { AcpiTables::from_rsdp(DirectMap, rsdp as usize) };
    let tables = tables.unwrap_or_else(|e| panic!("the ACPI tables cannot be read: {e:?}"));
    let madt = bytes_of::<RawMadt>(&tables).expect("no MADT: this kernel cannot count the CPUs");
    let warnings = topology.parse_into(
        madt,
        bytes_of::<RawSrat>(&tables),
        bytes_of::<RawSlit>(&tables),
    );
    let pm_timer = tables
        .find_table::<Fadt>()
        .ok()
        .and_then(|f| f.pm_timer_block().ok().flatten());
    let pm_timer = pm_timer.filter(|t| t.address_space == acpi::address::AddressSpace::SystemIo);
    Firmware {
        warnings,
        pm_timer: pm_timer.map(|t| t.address as u16),
    }
}
