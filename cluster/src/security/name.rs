//! What a node's certificate says: which node of which cluster, and when it is valid.

use x509_parser::{extensions::GeneralName, parse_x509_certificate};

use super::SecurityError;
use crate::NodeId;

/// The name of a node: `node-<id>.<cluster id in hex>.andante`.
pub(super) fn node_name(cluster_id: [u8; 16], node_id: NodeId) -> String {
    format!("node-{node_id}.{}.andante", hex(cluster_id))
}

/// The only spelling of a node's name, read back.
pub(super) fn parse_node_name(name: &str) -> Option<([u8; 16], NodeId)> {
    let (node, rest) = name.strip_prefix("node-")?.split_once('.')?;
    let cluster = rest.strip_suffix(".andante")?;
    let (node_id, cluster_id) = (node.parse().ok()?, u128::from_str_radix(cluster, 16).ok()?.to_be_bytes());
    (node_name(cluster_id, node_id) == name).then_some((cluster_id, node_id))
}

pub(super) fn hex(cluster_id: [u8; 16]) -> String {
    format!("{:032x}", u128::from_be_bytes(cluster_id))
}

/// What a certificate says. Not whether it is true: that takes its authority.
pub(super) struct Contents {
    /// The DNS names it is for.
    pub(super) names: Vec<String>,
    /// Its public key (SubjectPublicKeyInfo, DER).
    pub(super) public_key: Vec<u8>,
    pub(super) not_before_ms: u64,
    pub(super) not_after_ms: u64,
}

impl Contents {
    pub(super) fn read(certificate: &[u8]) -> Result<Self, SecurityError> {
        let unusable = |why: &dyn ToString| SecurityError::unusable("certificate", why.to_string());
        let (rest, certificate) = parse_x509_certificate(certificate).map_err(|e| unusable(&e))?;
        if !rest.is_empty() {
            return Err(unusable(&"something stands behind it"));
        }
        let san = certificate.subject_alternative_name().map_err(|e| unusable(&e))?;
        let names = san.iter().flat_map(|san| &san.value.general_names).filter_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            _ => None,
        });
        let ms = |seconds: i64| u64::try_from(seconds).unwrap_or(0).saturating_mul(1_000);
        Ok(Self {
            names: names.collect(),
            public_key: certificate.public_key().raw.to_vec(),
            not_before_ms: ms(certificate.validity().not_before.timestamp()),
            not_after_ms: ms(certificate.validity().not_after.timestamp()),
        })
    }

    /// The cluster and the node it is for: a node's certificate has this one name and no other.
    pub(super) fn node(&self) -> Result<([u8; 16], NodeId), SecurityError> {
        let node = match self.names.as_slice() {
            [name] => parse_node_name(name),
            _ => None,
        };
        node.ok_or_else(|| SecurityError::unusable("certificate", format!("for {:?}, not for a node", self.names)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_name_has_one_spelling() {
        let cluster = [0x0a; 16];
        let name = node_name(cluster, 7);
        assert_eq!(name, "node-7.0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a.andante");
        assert_eq!(parse_node_name(&name), Some((cluster, 7)));
        let (zeros, hex) = ("0".repeat(32), hex(cluster));
        for other in [
            String::new(),
            format!("node-07.{hex}.andante"),
            format!("node-+7.{hex}.andante"),
            format!("node-7.{}.andante", hex.to_uppercase()),
            format!("node-7.{}.andante", &hex[1..]),
            format!("node-7.{hex}.andante."),
            format!("node-7.x.{hex}.andante"),
            format!("node-7.{hex}"),
            format!("node-18446744073709551616.{zeros}.andante"),
            format!("*.{hex}.andante"),
        ] {
            assert_eq!(parse_node_name(&other), None, "{other}");
        }
    }
}
