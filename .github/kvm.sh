#!/bin/sh
# A GitHub runner has KVM, for root; and AppArmor keeps user namespaces from everybody.
set -eu
echo 'KERNEL=="kvm", GROUP="kvm", MODE="0666", OPTIONS+="static_node=kvm"' |
    sudo tee /etc/udev/rules.d/99-kvm.rules
sudo udevadm control --reload-rules
sudo udevadm trigger --name-match=kvm
sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0
