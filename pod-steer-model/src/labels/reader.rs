//! Parses single values. The error for a refused value names its source.
#![forbid(unsafe_code)]

use std::{collections::BTreeMap, ops::RangeInclusive};

use super::{
    Field, LabelError, WEIGHT_DEFAULT, WEIGHT_MAX,
    error::{self, Origin},
};
use crate::{
    ports::{self, PortMap},
    settings::{GivenOptions, Via},
    text::{Name, quoted},
};

/// Parses values and collects the errors. A refused value is replaced by its type's default.
pub(super) struct Reader {
    origin: Origin,
    errors: Vec<LabelError>,
}

impl Reader {
    pub fn new(origin: Origin) -> Self {
        Self { origin, errors: Vec::new() }
    }

    pub fn finish<T>(self, read: T) -> Result<T, Vec<LabelError>> {
        if self.errors.is_empty() { Ok(read) } else { Err(self.errors) }
    }

    pub fn field(&self, key: &'static str) -> Field {
        Field::new(key, self.origin.clone())
    }

    pub fn unknown(&mut self, key: &str) {
        self.errors.push(error::unknown(key, &self.origin));
    }

    pub fn missing<T: Default>(&mut self, key: &'static str, remedy: &'static str) -> T {
        self.errors.push(LabelError::Missing { field: self.field(key), remedy });
        T::default()
    }

    pub fn refuse(&mut self, key: &'static str, value: &str, wrong: impl Into<String>) {
        let field = self.field(key);
        self.errors.push(LabelError::Value { field, value: quoted(value), wrong: wrong.into() });
    }

    pub fn service(&mut self, name: &str) -> String {
        if let Some(wrong) = Name::Service.fault(name) {
            self.refuse("service", name, wrong);
        }
        name.to_owned()
    }

    pub fn ports(&mut self, list: &str) -> Vec<PortMap> {
        let field = self.field("ports");
        ports::parse_all(list).unwrap_or_else(|errors| {
            let error = |source| LabelError::Ports { field: field.clone(), value: quoted(list), source };
            self.errors.extend(errors.into_iter().map(error));
            Vec::new()
        })
    }

    pub fn version(&mut self, version: &str) -> String {
        if let Some(wrong) = Name::Version.fault(version) {
            self.refuse("version", version, wrong);
        }
        version.to_owned()
    }

    pub fn weight(&mut self, text: &str) -> u32 {
        let most = format!("the maximum is {WEIGHT_MAX}");
        let wrong = format!("write a number from 0 (no new connections) to {WEIGHT_MAX}");
        self.number("weight", text, 0..=WEIGHT_MAX, &most, &wrong).unwrap_or(WEIGHT_DEFAULT)
    }

    pub fn via(&mut self, text: &str) -> Via {
        Via::parse(text).unwrap_or_else(|wrong| {
            self.refuse("via", text, wrong);
            Via::default()
        })
    }

    /// Parses a whole number. `most` is the remedy for a number that is too large, `range` for any other error.
    pub fn number(
        &mut self,
        key: &'static str,
        text: &str,
        allowed: RangeInclusive<u32>,
        most: &str,
        range: &str,
    ) -> Option<u32> {
        let is_number = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        match text.parse() {
            Ok(number) if is_number && allowed.contains(&number) => return Some(number),
            Ok(number) if is_number && number < *allowed.start() => {
                self.refuse(key, text, format!("it is too small; {range}"));
            }
            _ if is_number => self.refuse(key, text, format!("it is too large; {most}")),
            _ => self.refuse(key, text, format!("it is not a whole number; {range}")),
        }
        None
    }

    /// The options among these texts.
    pub fn options(&mut self, texts: &BTreeMap<&str, &str>) -> GivenOptions {
        GivenOptions::read(texts, |key, text, wrong| self.refuse(key, text, wrong))
    }
}
