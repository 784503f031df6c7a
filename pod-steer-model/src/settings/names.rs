//! Names of tables in the configuration. Pure.
#![forbid(unsafe_code)]

use crate::text::quoted;

/// The name of a service as a part of a TOML key.
pub fn bare_or_quoted(service: &str) -> String {
    let bare = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if service.chars().all(bare) { service.to_owned() } else { quoted(service) }
}

/// The table of a service in the configuration, as TOML has it.
pub fn table_name(service: &str) -> String {
    format!("[service.{}]", bare_or_quoted(service))
}
