//! Messages of the Container Storage Interface and of kubelet's plugin registration, as far as
//! they are used. Field numbers are those of the published `.proto` files.

use std::collections::BTreeMap;

/// `pluginregistration.InfoRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct InfoRequest {}

/// `pluginregistration.PluginInfo`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PluginInfo {
    /// `CSIPlugin` or `DevicePlugin`.
    #[prost(string, tag = "1")]
    pub r#type: String,
    /// The driver's name.
    #[prost(string, tag = "2")]
    pub name: String,
    /// The socket that it serves on, as kubelet sees it.
    #[prost(string, tag = "3")]
    pub endpoint: String,
    /// The versions of the interface that it serves.
    #[prost(string, repeated, tag = "4")]
    pub supported_versions: Vec<String>,
}

/// `pluginregistration.RegistrationStatus`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RegistrationStatus {
    /// Whether kubelet took the driver.
    #[prost(bool, tag = "1")]
    pub plugin_registered: bool,
    /// Why not.
    #[prost(string, tag = "2")]
    pub error: String,
}

/// `pluginregistration.RegistrationStatusResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RegistrationStatusResponse {}

/// `csi.v1.GetPluginInfoRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GetPluginInfoRequest {}

/// `csi.v1.GetPluginInfoResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GetPluginInfoResponse {
    /// The driver's name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its version.
    #[prost(string, tag = "2")]
    pub vendor_version: String,
}

/// `csi.v1.GetPluginCapabilitiesRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GetPluginCapabilitiesRequest {}

/// `csi.v1.GetPluginCapabilitiesResponse`, always without any.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GetPluginCapabilitiesResponse {}

/// `csi.v1.ProbeRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ProbeRequest {}

/// `google.protobuf.BoolValue`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct BoolValue {
    /// The value.
    #[prost(bool, tag = "1")]
    pub value: bool,
}

/// `csi.v1.ProbeResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ProbeResponse {
    /// Whether the driver can serve.
    #[prost(message, optional, tag = "1")]
    pub ready: Option<BoolValue>,
}

/// `csi.v1.NodeGetInfoRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct NodeGetInfoRequest {}

/// `csi.v1.NodeGetInfoResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct NodeGetInfoResponse {
    /// The node, as the driver calls it.
    #[prost(string, tag = "1")]
    pub node_id: String,
    /// Most volumes on the node; 0 is no limit.
    #[prost(int64, tag = "2")]
    pub max_volumes_per_node: i64,
}

/// `csi.v1.NodeGetCapabilitiesRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct NodeGetCapabilitiesRequest {}

/// `csi.v1.NodeGetCapabilitiesResponse`, always without any: there is nothing to stage.
#[derive(Clone, PartialEq, prost::Message)]
pub struct NodeGetCapabilitiesResponse {}

/// `csi.v1.NodePublishVolumeRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct NodePublishVolumeRequest {
    /// The volume's id.
    #[prost(string, tag = "1")]
    pub volume_id: String,
    /// Where the volume is wanted.
    #[prost(string, tag = "4")]
    pub target_path: String,
    /// What kind of volume is wanted.
    #[prost(message, optional, tag = "5")]
    pub volume_capability: Option<VolumeCapability>,
    /// Whether the pod may only read it.
    #[prost(bool, tag = "6")]
    pub readonly: bool,
    /// The pod's tokens, among others. Never logged.
    #[prost(btree_map = "string, string", tag = "7")]
    pub secrets: BTreeMap<String, String>,
    /// The volume's attributes, and what kubelet says of the pod.
    #[prost(btree_map = "string, string", tag = "8")]
    pub volume_context: BTreeMap<String, String>,
}

/// `csi.v1.VolumeCapability`, as far as it is looked at.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct VolumeCapability {
    /// A device is wanted, and no folder.
    #[prost(message, optional, tag = "1")]
    pub block: Option<BlockVolume>,
}

/// `csi.v1.VolumeCapability.BlockVolume`.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct BlockVolume {}

/// `csi.v1.NodePublishVolumeResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct NodePublishVolumeResponse {}

/// `csi.v1.NodeUnpublishVolumeRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct NodeUnpublishVolumeRequest {
    /// The volume's id.
    #[prost(string, tag = "1")]
    pub volume_id: String,
    /// Where the volume was.
    #[prost(string, tag = "2")]
    pub target_path: String,
}

/// `csi.v1.NodeUnpublishVolumeResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct NodeUnpublishVolumeResponse {}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;

    /// Bytes written by hand from `csi.proto` v1.11 and `pluginregistration/v1/api.proto`.
    #[test]
    fn field_numbers_are_those_of_the_published_interfaces() {
        let publish = NodePublishVolumeRequest::decode(
            &b"\x0a\x05csi-1\x1a\x05/stag\x22\x04/pod\x2a\x02\x0a\x00\x30\x01\x3a\x06\x0a\x01s\x12\x01t\x42\x06\x0a\x01k\x12\x01v"[..],
        )
        .unwrap();
        assert_eq!(publish.volume_id, "csi-1");
        assert_eq!(publish.target_path, "/pod");
        assert!(publish.volume_capability.unwrap().block.is_some());
        assert!(publish.readonly);
        assert_eq!(publish.secrets["s"], "t");
        assert_eq!(publish.volume_context["k"], "v");

        let unpublish = NodeUnpublishVolumeRequest::decode(&b"\x0a\x01v\x12\x02/t"[..]).unwrap();
        assert_eq!((unpublish.volume_id.as_str(), unpublish.target_path.as_str()), ("v", "/t"));

        let info = PluginInfo {
            r#type: "t".into(),
            name: "n".into(),
            endpoint: "e".into(),
            supported_versions: vec!["1".into()],
        };
        assert_eq!(info.encode_to_vec(), b"\x0a\x01t\x12\x01n\x1a\x01e\x22\x011");
        let status = RegistrationStatus::decode(&b"\x08\x01\x12\x01x"[..]).unwrap();
        assert!(status.plugin_registered);
        assert_eq!(status.error, "x");
        let node = NodeGetInfoResponse { node_id: "i-1".into(), max_volumes_per_node: 0 };
        assert_eq!(node.encode_to_vec(), b"\x0a\x03i-1");
        let ready = ProbeResponse { ready: Some(BoolValue { value: true }) };
        assert_eq!(ready.encode_to_vec(), b"\x0a\x02\x08\x01");
    }
}
