#include "formats/luks/amend.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/option_values.h"
#include "formats/crypto/encrypt_options.h"
#include "formats/luks/create.h"

namespace spindle::luks {
namespace {

using Changes = std::map<std::string, std::string>;

bool has(const Changes& changes, const std::string& name) {
  return changes.count(name) != 0;
}

absl::StatusOr<std::optional<size_t>> stated_slot(const Changes& changes) {
  const auto given = changes.find("keyslot");
  if (given == changes.end()) return std::nullopt;
  const absl::StatusOr<uint64_t> number =
      parse_number_option("keyslot", given->second);
  if (!number.ok()) return number.status();
  if (*number < kSlotCount) return static_cast<size_t>(*number);
  return absl::InvalidArgumentError(
      absl::StrCat("option 'keyslot' is ", *number,
                   "; it must be between 0 and ", kSlotCount - 1));
}

absl::Status refuse(const Changes& changes, const std::string& name,
                    absl::string_view state) {
  if (!has(changes, name)) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "option '", name, "' makes no sense with state '", state, "'"));
}

absl::StatusOr<size_t> slot_to_fill(const Header& header,
                                    std::optional<size_t> stated, bool force) {
  if (stated.has_value()) {
    if (!header.slots[*stated].active || force) return *stated;
    return absl::FailedPreconditionError(absl::StrCat(
        "key slot ", *stated, " is active; it must be erased first"));
  }
  for (size_t i = 0; i < kSlotCount; ++i) {
    if (!header.slots[i].active) return i;
  }
  return absl::ResourceExhaustedError(
      absl::StrCat("all ", kSlotCount, " key slots are active"));
}

absl::StatusOr<SlotChange> plan_fill(const Header& header,
                                     const SecretBytes& key,
                                     const SecretStore* secrets,
                                     const AmendOptions& options) {
  const Changes& changes = options.changes;
  absl::Status status = refuse(changes, "old-secret", "active");
  if (!status.ok()) return status;
  if (!has(changes, "new-secret")) {
    return absl::InvalidArgumentError(
        "option 'new-secret' is required to activate a key slot");
  }
  const auto secret = crypto::find_secret(changes, "new-secret", secrets);
  if (!secret.ok()) return secret.status();
  const auto time = find_iter_time(changes, "");
  if (!time.ok()) return time.status();
  const auto stated = stated_slot(changes);
  if (!stated.ok()) return stated.status();
  const auto number = slot_to_fill(header, *stated, options.force);
  if (!number.ok()) return number.status();
  SlotChange change;
  // Forced: the old passphrase is given up first.
  if (header.slots[*number].active) change.erased.push_back(*number);
  absl::StatusOr<FilledSlot> filled =
      prepare_slot(header, *number, (*secret)->span(), key, *time);
  if (!filled.ok()) return filled.status();
  change.filled = *std::move(filled);
  return change;
}

// The active slots that the passphrase opens.
absl::StatusOr<std::vector<size_t>> matching_slots(
    const HeaderArea& area, const Header& header, std::optional<size_t> stated,
    absl::Span<const uint8_t> passphrase) {
  std::vector<size_t> matching;
  for (size_t i = 0; i < kSlotCount; ++i) {
    if (!header.slots[i].active || stated.value_or(i) != i) continue;
    const auto key = unlock_slot(area, header, i, passphrase);
    if (!key.ok()) return key.status();
    if (key->has_value()) matching.push_back(i);
  }
  if (!matching.empty()) return matching;
  return absl::InvalidArgumentError(
      stated.has_value()
          ? absl::StrCat("key slot ", *stated, " has another passphrase")
          : "no key slot has the passphrase that 'old-secret' names");
}

absl::StatusOr<std::vector<size_t>> slots_to_erase(
    const HeaderArea& area, const Header& header, const SecretStore* secrets,
    const AmendOptions& options) {
  const Changes& changes = options.changes;
  const auto stated = stated_slot(changes);
  if (!stated.ok()) return stated.status();
  if (!stated->has_value() && !has(changes, "old-secret")) {
    return absl::InvalidArgumentError(
        "to erase key slots, option 'keyslot' or 'old-secret' must say which");
  }
  if (stated->has_value() && !header.slots[**stated].active && !options.force) {
    return absl::FailedPreconditionError(
        absl::StrCat("key slot ", **stated, " is inactive already"));
  }
  if (!has(changes, "old-secret")) return std::vector<size_t>{**stated};
  const auto secret = crypto::find_secret(changes, "old-secret", secrets);
  if (!secret.ok()) return secret.status();
  return matching_slots(area, header, *stated, (*secret)->span());
}

absl::StatusOr<SlotChange> plan_erase(const HeaderArea& area,
                                      const Header& header,
                                      const SecretStore* secrets,
                                      const AmendOptions& options) {
  absl::Status status = refuse(options.changes, "new-secret", "inactive");
  if (status.ok()) status = refuse(options.changes, "iter-time", "inactive");
  if (!status.ok()) return status;
  auto numbers = slots_to_erase(area, header, secrets, options);
  if (!numbers.ok()) return numbers.status();
  const auto active = static_cast<size_t>(
      std::count_if(numbers->begin(), numbers->end(),
                    [&](size_t i) { return header.slots[i].active; }));
  if (active == header.active_slots() && active > 0 && !options.force) {
    return absl::FailedPreconditionError(
        "these are the last active key slots: without them all data are lost "
        "for good; only --force erases them");
  }
  SlotChange change;
  change.erased = *std::move(numbers);
  return change;
}

}  // namespace

absl::StatusOr<SlotChange> plan_change(const HeaderArea& area,
                                       const Header& header,
                                       const SecretBytes& key,
                                       const SecretStore* secrets,
                                       const AmendOptions& options) {
  for (const auto& [name, value] : options.changes) {
    const auto known = amend_options();
    if (std::none_of(known.begin(), known.end(),
                     [&name](const OptionHelp& o) { return o.name == name; }))
      return absl::InvalidArgumentError(
          absl::StrCat("Invalid parameter '", name, "'"));
  }
  const auto state = options.changes.find("state");
  if (state == options.changes.end())
    return absl::InvalidArgumentError("Parameter 'state' is missing");
  if (state->second == "active")
    return plan_fill(header, key, secrets, options);
  if (state->second == "inactive")
    return plan_erase(area, header, secrets, options);
  return absl::InvalidArgumentError(
      absl::StrCat("option 'state' is '", state->second,
                   "'; it must be 'active' or 'inactive'"));
}

absl::Status write_change(const HeaderArea& area, Header* header,
                          const SlotChange& change) {
  for (const size_t number : change.erased) {
    absl::Status status = erase_slot(area, header, number);
    if (!status.ok()) return status;
  }
  return change.filled.has_value() ? write_slot(area, header, *change.filled)
                                   : absl::OkStatus();
}

std::vector<OptionHelp> amend_options() {
  return {
      {"iter-time", "<num>", "Time to spend in PBKDF in milliseconds"},
      {"keyslot", "<num>", "Select a single keyslot to modify explicitly"},
      {"new-secret", "<str>",
       "New secret to set in the matching keyslots. Empty string to erase"},
      {"old-secret", "<str>", "Select all keyslots that match this password"},
      {"state", "<str>",
       "Select new state of affected keyslots (active/inactive)"},
  };
}

}  // namespace spindle::luks
