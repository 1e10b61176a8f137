//! Servers whose leases can be believed.

use etcd_client::{Client, ConnectOptions};
use tokio::runtime::Runtime;

use super::{EtcdConfig, failed};
use crate::error::CsvError;

/// Refuses servers with leases that are known to be defective. Servers that do not answer are not asked again.
pub(super) fn check_versions(runtime: &Runtime, config: &EtcdConfig, options: &ConnectOptions) -> Result<(), CsvError> {
    let mut answered = false;
    let mut last = String::new();
    for endpoint in &config.endpoints {
        let asked = runtime.block_on(async {
            let mut client = Client::connect([endpoint], Some(options.clone())).await?;
            Ok::<_, etcd_client::Error>(client.status().await?.version().to_owned())
        });
        match asked {
            Ok(version) => {
                answered = true;
                check_version(&version)?;
            }
            Err(error) => last = format!("{endpoint}: {error}"),
        }
    }
    if answered { Ok(()) } else { Err(failed(&last)) }
}

fn check_version(found: &str) -> Result<(), CsvError> {
    let mut parts = found
        .split('.')
        .map(|part| part.split('-').next().and_then(|digits| digits.parse::<u32>().ok()));
    let mut part = || parts.next().flatten().unwrap_or(0);
    let wanted = match (part(), part(), part()) {
        (3, 4, 31..) | (3, 5, 13..) | (3, 6.., _) | (4.., _, _) => return Ok(()),
        (3, 5, _) => "3.5.13",
        _ => "3.4.31",
    };
    Err(CsvError::EngineVersion {
        found: found.to_owned(),
        wanted,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_with_defective_leases_are_refused() {
        for good in ["3.4.31", "3.4.40", "3.5.13", "3.5.21", "3.6.0", "3.6.0-rc.1", "4.0.0"] {
            assert!(check_version(good).is_ok(), "{good}");
        }
        for bad in ["3.4.23", "3.5.12", "3.5.1", "3.3.40", "2.3.8", "", "x.y.z"] {
            assert_eq!(check_version(bad).unwrap_err().code(), "VHD-E0912", "{bad}");
        }
    }
}
