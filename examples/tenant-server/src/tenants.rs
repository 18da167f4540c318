//! All tenants, each made when somebody first selects it.

use std::collections::HashMap;
use std::sync::{Mutex, OnceLock, PoisonError};

use memcg::{Error, Group, Limit, OnLimit};

use crate::options::Options;
use crate::tenant::{Tenant, name_of};

/// What a tenant may exceed its limit by for the little that cannot be allocated fallibly, in bytes. All connections of the
/// tenant share it, and it is counted.
const OVERSHOOT: u64 = 64 << 10;

/// The group of all tenants, and the tenants.
#[derive(Debug)]
pub(crate) struct Tenants {
    parent: Group,
    default_max: Limit,
    maxes: HashMap<u32, Limit>,
    slots: Box<[OnceLock<Box<Tenant>>]>,
    making: Mutex<()>,
}

impl Tenants {
    /// No tenant yet, under one group with the total.
    ///
    /// # Errors
    ///
    /// As [`Group::builder`]: above all, that this allocator does not serve the process.
    pub(crate) fn new(options: &Options) -> Result<Self, Error> {
        let parent = Group::root().builder("tenants").max(options.total_max).build()?;
        Ok(Self {
            parent,
            default_max: options.default_max,
            maxes: options.tenants.iter().copied().collect(),
            slots: (0..options.databases).map(|_| OnceLock::new()).collect(),
            making: Mutex::new(()),
        })
    }

    /// The group of all tenants.
    pub(crate) fn group(&self) -> &Group {
        &self.parent
    }

    /// How many databases there can be.
    pub(crate) fn databases(&self) -> usize {
        self.slots.len()
    }

    /// The tenant of a database, if somebody has selected it.
    pub(crate) fn get(&self, db: u32) -> Option<&Tenant> {
        self.slots.get(db as usize)?.get().map(Box::as_ref)
    }

    /// The tenant of a database; `Ok(None)` where there is no such database.
    ///
    /// # Errors
    ///
    /// As [`Group::builder`].
    pub(crate) fn open(&self, db: u32) -> Result<Option<&Tenant>, Error> {
        let Some(slot) = self.slots.get(db as usize) else {
            return Ok(None);
        };
        if let Some(tenant) = slot.get() {
            return Ok(Some(tenant));
        }
        let _one_at_a_time = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        if slot.get().is_none() {
            let tenant = memcg::unaccounted(|| self.make(db))?;
            // Nobody else sets it: that takes the lock.
            let _first = slot.set(tenant);
        }
        Ok(slot.get().map(Box::as_ref))
    }

    /// The tenants that somebody has selected, by number.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Tenant> {
        self.slots.iter().filter_map(|slot| slot.get().map(Box::as_ref))
    }

    fn make(&self, db: u32) -> Result<Box<Tenant>, Error> {
        let max = self.maxes.get(&db).copied().unwrap_or(self.default_max);
        let group = self
            .parent
            .builder(&name_of(db))
            .max(max)
            .on_limit(OnLimit::OvercommitBy(OVERSHOOT))
            .build()?;
        Ok(Box::new(Tenant::new(db, group)))
    }
}
